"""The image's configuration in a container's conditions: no network, a read-only root, no capabilities (S2)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_time

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0
INSIDE = """
set -e
mount -t tmpfs tmpfs "$STATE"
for at in $(awk '$5 !~ "^/(proc|sys|dev)(/|$)" {print $5}' /proc/self/mountinfo); do
    [ "$at" = "$STATE" ] || mount -o remount,bind,ro "$at" || true
done
if touch "$STATE/../touched" 2>/dev/null; then echo writable >&2; exit 9; fi
touch "$STATE/touched"
exec setpriv --bounding-set -all --inh-caps -all --ambient-caps -all --no-new-privs "$@"
"""


def can_unshare() -> bool:
    """Return True if this machine lets us make namespaces, as root in a virtual machine or in CI may."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    return subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs namespaces")
async def test_the_router_runs_without_network_rights_or_a_writable_root_s2(tmp_path: Path) -> None:
    """It starts without an Ollama, writes only what its configuration names, and ends when it is told to."""
    state = tmp_path / "state"
    state.mkdir()
    files = {"STORE__PATH": "learned.sqlite", "USAGE__PATH": "usage.sqlite", "AUDIT__PATH": "audit.jsonl"}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "STATE": str(state)}
    env |= {f"OLLAMA_ROUTER_{key}": str(state / name) for key, name in files.items()}
    argv = ["sh", "-c", INSIDE, "sh", sys.executable, "-m", "router", "serve"]
    argv += ["--config", str(ROOT / "config/examples/container.yaml")]
    process = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--net", *argv, env=env, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while not lines or "listens on http://0.0.0.0:11435, admin on http://0.0.0.0:11436" not in lines[-1]:
            lines.append((await process.stderr.readline()).decode())
            assert lines[-1], lines
        process.send_signal(signal.SIGTERM)
        lines += (await process.stderr.read()).decode().splitlines()
        assert await process.wait() == 0, "\n".join(lines)
    said = "".join(lines)
    assert "Traceback" not in said
    assert not [line for line in lines if "cannot be" in line and "Ollama" not in line]
