"""Two fronts and two nodes on one network, of which one after the other is cut off: in network namespaces."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.blocks import ROOT
from tests.e2e.fleet_cable import FRONTS, LINK_S, MODELS, NODES, PORT, TOKENS
from tests.e2e.network import network, why_not

pytestmark = [pytest.mark.slow, pytest.mark.real_time]

KEY = "the-key-of-this-fleet-0123456789"
SPEEDS = ("--load-mib-per-s", "20000", "--tokens-per-s", "25", "--parallel", "4")
OLLAMA, CARDS = "127.0.0.1:11434", "127.0.0.1:11499"
WHY_NOT = functools.cache(why_not)


def common() -> dict[str, Any]:
    """Return what the configurations of fronts and nodes have in common."""
    return {
        "listen": f"0.0.0.0:{PORT}",
        "store": {"path": ":memory:"},
        "defaults": {"auto_chains": "off"},
        "timeouts": {"link_s": LINK_S},
        "fleet": {"breaker_open_s": 3, "retry_share": 1},
    }


def of_node(name: str, folder: Path) -> dict[str, Any]:
    probe = {"kind": "prometheus", "url": f"http://{CARDS}/metrics"}
    backend = {"url": f"http://{OLLAMA}", "probe": probe, "server": {"num_parallel": 4}}
    node = {"name": name, "key_sha256_file": str(folder / "key.sha256")}
    return {**common(), "node": node, "backends": {"local": backend}}


def of_front(name: str, folder: Path) -> dict[str, Any]:
    """One front has a list of the nodes, the other finds them by a name, as in a cluster."""
    listed = {"static": [f"http://{address}:{PORT}" for address in NODES.values()]}
    discover = listed if name == "front-a" else {"dns": "nodes", "port": PORT, "every_s": 1}
    backend = {"kind": "node", "key_file": str(folder / "key"), "discover": discover}
    return {**common(), "backends": {"nodes": backend}}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a client has seen."""
    if WHY_NOT():
        pytest.skip(WHY_NOT())
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "key").write_text(KEY)
    (folder / "key.sha256").write_text(hashlib.sha256(KEY.encode()).hexdigest())
    router, env = (sys.executable, "-m", "router"), {**os.environ, "PYTHONPATH": str(ROOT)}
    machines = {**FRONTS, **NODES, "client": "10.0.0.2"}
    with network(machines) as net, (folder / "log").open("w") as log:
        for name in NODES:
            argv = ("simulate", "--gpu", "16384", "--models", ",".join(MODELS), *SPEEDS)
            net.start(name, *router, *argv, "--listen", OLLAMA, "--gpu-metrics", CARDS, env=env, log=log)
            net.wait_for(name, f"http://{OLLAMA}/api/version")
        for name in machines.keys() - {"client"}:
            file = folder / f"{name}.yaml"
            file.write_text(json.dumps(of_node(name, folder) if name in NODES else of_front(name, folder)))
            net.know(name, {"nodes": list(NODES.values())})
            net.start(name, *router, "serve", "--config", str(file), env=env, log=log)
        for name in machines.keys() - {"client"}:
            net.wait_for(name, f"http://127.0.0.1:{PORT}/api/version")
        command = net.on("client", sys.executable, "-m", "tests.e2e.fleet_cable", net.prefix)
        done = subprocess.run(command, env=env, cwd=ROOT, timeout=600, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:] + (folder / "log").read_text()[-8000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def outcomes(rows: list[dict[str, Any]]) -> set[tuple[int, str, bool]]:
    """Return statuses, nodes, and whether answers were whole."""
    return {(one["status"], one["backend"], one["is_whole"]) for one in rows}


def test_fronts_that_do_not_talk_send_a_model_to_one_node(seen: dict[str, Any]) -> None:
    """Six requests for a cold model, by both fronts at once; and the other model is on the other node."""
    ((status, node, is_whole),) = outcomes(seen["cold"])
    assert (status, is_whole) == (200, True)
    at = {one["model"]: one["backend"] for one in seen["spread"]}
    assert at[MODELS[1]] == node
    assert set(at.values()) == set(NODES)


def test_a_node_that_is_cut_off_breaks_its_own_streams_only(seen: dict[str, Any]) -> None:
    """Each with one error, whichever front it came through; those of the other node are whole."""
    cut = {one["backend"] for one in seen["spread"] if one["model"] == MODELS[1]}
    streams = seen["streams"]["node cut off"]
    broken, others = ([one for one in streams if (one["backend"] in cut) is is_cut] for is_cut in (True, False))
    assert [(one["is_whole"], one["errors"]) for one in broken] == [(False, 1)] * len(FRONTS)
    assert [(one["is_whole"], one["errors"]) for one in others] == [(True, 0)] * len(FRONTS)
    assert all(one["parts"] >= TOKENS for one in others)


def test_nothing_is_sent_to_a_node_that_is_cut_off_and_it_comes_back_by_itself_n4(seen: dict[str, Any]) -> None:
    """Requests that were on their way go to the other node, the rest at once."""
    (other,) = {one["backend"] for one in seen["spread"] if one["model"] != MODELS[1]}
    assert outcomes(seen["meanwhile"]) == outcomes(seen["later"]) == {(200, other, True)}
    assert {one["attempts"] for one in seen["later"]} == {1}
    assert seen["used_again_s"] < 60


def test_a_front_that_reaches_no_node_says_so_and_the_other_goes_on(seen: dict[str, Any]) -> None:
    """It is used again as soon as it reaches them."""
    if not seen["is_parted"]:
        pytest.skip("iptables cannot part machines here")
    assert {one["status"] for one in seen["at_parted"]} <= {502, 503, 504}
    assert {one["status"] for one in seen["at_other"]} == {200}
    assert seen["parted_again_s"] < 60
