"""What the backend's tests share."""

import pytest

from ollama_simulator.clock import run_virtual


@pytest.fixture
def virtual():
    """Run a coroutine function to its end on a new virtual clock."""
    return lambda story: run_virtual(story())
