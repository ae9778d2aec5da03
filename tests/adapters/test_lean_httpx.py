"""A router does not hold what only httpx's command line needs."""

import subprocess
import sys

UNUSED = ("rich", "pygments", "click", "httpx._main")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_a_router_that_serves_imports_no_library_for_coloured_text():
    """Several megabytes for each process; commands that print import what they use."""
    code = f"import sys, router.app, router.cli.serve; print(*(set({UNUSED!r}) & set(sys.modules)))"
    assert run(code) == []


def test_the_command_line_of_httpx_can_be_imported_all_the_same():
    """Before or after."""
    assert run("import router.adapters.lean_httpx, httpx._main as m; print(m.main is not None)") == ["True"]
    assert run("import httpx, router.adapters.lean_httpx as m; print(m.httpx is httpx)") == ["True"]
