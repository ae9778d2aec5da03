"""A test that claims to prove a key must have run routers with different values of it."""

from __future__ import annotations

import pytest

from tests.config.keys.marks import unproven
from tests.config.keys.play import in_force


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Compare the marks of a test that has passed with the configurations that were in force."""
    in_force.clear()
    result = yield
    marked = [key for mark in pyfuncitem.iter_markers("key") for key in mark.args]
    if missing := unproven(marked, in_force):
        pytest.fail(f"no two routers of this test differ in {', '.join(missing)}", pytrace=False)
    return result
