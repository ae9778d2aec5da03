"""A front finds its nodes by a real name server, whose answers change while requests run: in namespaces of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.real_time]

UNSHARE = ("unshare", "--mount", "--net")


def can_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    bound = "ip link set lo up && mount --bind /etc/hostname /etc/resolv.conf"
    return subprocess.run([*UNSHARE, "sh", "-c", bound], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs root, for namespaces")
def test_nodes_come_and_go_with_the_addresses_of_a_name_and_no_request_fails(tmp_path: Path) -> None:
    """A node whose address is gone ends what it has begun; while the name cannot be resolved nothing changes."""
    command = f"ip link set lo up && exec {sys.executable} -m tests.e2e.names {tmp_path}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*UNSHARE, "sh", "-c", command], env=env, cwd=ROOT, timeout=600, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    answered = {phase: set(answers) for phase, answers in facts["answers"].items()}
    assert answered.pop("two") <= {"a", "b"}
    assert answered.pop("all") <= {"a", "b", "c"}
    assert answered.pop("one") == answered.pop("others") == {"a"}
    assert len(answered) == 4
    assert all(nodes and nodes <= {"b", "c"} for nodes in answered.values()), answered
    assert facts["stream"] == ["a", True]
