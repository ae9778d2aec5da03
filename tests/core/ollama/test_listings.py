"""Errors of Ollama that may only mean that a manifest vanished while it listed them."""

import pytest

from router.core.ollama.listings import may_be_failed_listing


@pytest.mark.parametrize(
    ("status", "text", "may_be"),
    [
        (404, b"model 'x' not found", True),
        (400, b"model is required", True),
        (400, b"stat /m/registry.ollama.ai/library/x/y: no such file or directory", True),
        (500, b"stat /m/registry.ollama.ai/library/x/y: no such file or directory", True),
        (500, b"CreateFile C:\\m\\x: The system cannot find the file specified.", True),
        (500, b"model is required", False),
        (500, b"llama runner process has terminated", False),
        (400, b'"x" does not support chat', False),
        (503, b"no such file or directory", False),
        (200, b"no such file or directory", False),
    ],
)
def test_status_and_text_say_whether_to_ask_again(status, text, may_be):
    """A request that was refused for another reason is not repeated."""
    assert may_be_failed_listing(status, text) is may_be
