"""The commands of README and documents work as they stand, or say why they are not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.blocks import ROOT, blocks, unmarked

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTING = {"README", "index"}
"""Pages that start a router themselves."""
SAID = {"README": "too big", "index": "x-router-model: llama3.1:8b", "admin-api": '"forgotten"'}
"""What is seen in what they print."""
RUN = [page for page in PAGES if any(kind == "run" for kind, _, _ in blocks(page))]


def can_unshare() -> bool:
    """Return True if this machine lets us make a network, as root in a virtual machine or in CI may."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_is_run_or_says_why_not(page: Path) -> None:
    """By a comment in front of it."""
    assert unmarked(page) == 0


@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.skipif(not can_unshare() or shutil.which("curl") is None, reason="needs network namespaces, and curl")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_commands_of_a_page_work_as_they_stand(page: Path, tmp_path: Path) -> None:
    """On their own addresses, in a network of their own, in front of a simulated Ollama with one 24 GB card."""
    starts = "itself" if page.stem in STARTING else "router"
    argv = ["unshare", "--net", sys.executable, "-m", "tests.e2e.blocks", str(tmp_path), starts, str(page)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    print(said)
    assert SAID.get(page.stem, "") in said
