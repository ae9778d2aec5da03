"""Two machines of one network, set up as docs/fleet.md says, whose cable is pulled out: in network namespaces."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.blocks import ROOT
from tests.e2e.cable import LINK_S, MOMENT_S, TOKENS
from tests.e2e.network import network, why_not

pytestmark = [pytest.mark.slow, pytest.mark.real_time]

DESK, TOWER = "10.0.0.1", "10.0.0.7"
MODELS = "qwen3:32b,qwen3:14b,qwen3:8b"
SPEEDS = ("--load-mib-per-s", "20000", "--tokens-per-s", "25")
SETTINGS = {
    "TIMEOUTS__LINK_S": f"{LINK_S:g}",
    "FLEET__RETRY_SHARE": "1",
    "FLEET__BREAKER_OPEN_S": "3",
    "STORE__PATH": ":memory:",
    "BACKENDS__DESK__PROBE__KIND": "prometheus",  # the simulated card has no driver
    "BACKENDS__DESK__PROBE__URL": "http://127.0.0.1:11499/metrics",
}
WHY_NOT = functools.cache(why_not)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Return what the page's commands have printed, and what was seen."""
    if WHY_NOT():
        pytest.skip(WHY_NOT())
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(ROOT / "config/examples/two-machines.yaml", folder)
    (folder / "bin").mkdir()
    ssh = folder / "bin/ssh"
    ssh.write_text(f"#!/bin/sh\nexec {sys.executable} {ROOT}/tests/e2e/ssh.py http://{TOWER}:11499/metrics\n")
    ssh.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with network({"desk": DESK, "tower": TOWER}) as net, (folder / "simulate.log").open("w") as log:
        for name, size, at in (("tower", "24564", "0.0.0.0"), ("desk", "12288", "127.0.0.1")):
            argv = ("simulate", "--gpu", size, "--models", MODELS, *SPEEDS)
            where = ("--listen", f"{at}:11434", "--gpu-metrics", f"{at}:11499")
            net.start(name, sys.executable, "-m", "router", *argv, *where, env=env, log=log)
            net.wait_for(name, "http://127.0.0.1:11434/api/version")
        settings = {f"OLLAMA_ROUTER_{key}": value for key, value in SETTINGS.items()}
        argv = (sys.executable, "-m", "tests.e2e.cable", str(folder), net.prefix)
        command = net.on("desk", *argv)
        done = subprocess.run(command, env={**env, **settings}, cwd=ROOT, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout)
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def stream(said: tuple[str, dict[str, Any]], phase: str, backend: str) -> dict[str, Any]:
    """Return the stream of a machine in one phase."""
    (found,) = [one for one in said[1]["streams"][phase] if one["backend"] == backend]
    assert isinstance(found, dict)
    return found


def is_whole(one: dict[str, Any]) -> bool:
    """Return whether a stream has come to its end with all of its parts, and without an error."""
    return bool(one["is_whole"] and one["errors"] == 0 and one["parts"] >= TOKENS)


def test_the_five_minutes_of_the_page_work_as_they_stand(said: tuple[str, dict[str, Any]]) -> None:
    """The check asks both, the explanation ranks both, and the answer comes from the tower's bigger card."""
    text = said[0]
    assert re.search(r"^chat.*: qwen3:32b \(fits\); tower: .* GiB free$", text, re.MULTILINE)
    assert re.search(r"^>\s+tower\s+qwen3:32b", text, re.MULTILINE)
    assert re.search(r"^\s+desk\s+qwen3:14b", text, re.MULTILINE)
    assert "x-router-backend: tower" in text
    assert "x-router-model: qwen3:32b" in text


def test_a_cable_that_is_out_for_a_moment_breaks_nothing(said: tuple[str, dict[str, Any]]) -> None:
    """The stream goes on where it was: nothing is lost."""
    cut = stream(said, "cut for a moment", "tower")
    assert is_whole(cut)
    assert cut["pause_s"] > MOMENT_S / 2
    assert is_whole(stream(said, "cut for a moment", "desk"))


def test_a_cable_that_is_out_for_long_breaks_the_stream_over_it_only(said: tuple[str, dict[str, Any]]) -> None:
    """With one error, soon after `timeouts.link_s`; the one of the desk is as if nothing had happened."""
    cut = stream(said, "cut for long", "tower")
    assert (cut["is_whole"], cut["errors"]) == (False, 1)
    assert LINK_S / 2 < cut["pause_s"] < 10 * LINK_S
    assert is_whole(stream(said, "cut for long", "desk"))


def test_requests_are_served_by_the_other_machine_meanwhile_b3(said: tuple[str, dict[str, Any]]) -> None:
    """Those that come before anybody knows, and those afterwards, which nobody sends to the tower any more."""
    meanwhile, later = said[1]["meanwhile"], said[1]["later"]
    assert meanwhile
    assert {(one["status"], one["backend"], one["is_whole"]) for one in (*meanwhile, *later)} == {(200, "desk", True)}
    assert {one["attempts"] for one in later} == {1}


def test_the_machine_is_used_again_by_itself(said: tuple[str, dict[str, Any]]) -> None:
    """Without a restart of anything."""
    assert said[1]["back_s"] < 60
    assert said[1]["used_again_s"] < 60


def test_lost_packets_lose_no_part_of_an_answer(said: tuple[str, dict[str, Any]]) -> None:
    """One in twenty."""
    if not said[1]["is_lossy"]:
        pytest.skip("iptables cannot lose packets here")
    assert is_whole(stream(said, "lossy", "tower"))
    assert is_whole(stream(said, "lossy", "desk"))


def test_a_slow_link_loses_no_part_of_an_answer(said: tuple[str, dict[str, Any]]) -> None:
    """30 ms each way back, with the losses."""
    if not said[1]["is_slow"]:
        pytest.skip("tc netem is not in this kernel")
    assert is_whole(stream(said, "lossy", "tower"))
