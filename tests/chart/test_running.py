"""What the chart makes, as Kubernetes would run it: each pod a machine of one network, with its files and commands."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.cases import ADMIN_KEY, MOUNTED, Rendered, values_of
from tests.e2e.blocks import PROGRAM, ROOT
from tests.e2e.network import Network, network, why_not

pytestmark = [pytest.mark.slow, pytest.mark.real_time]

PODS = {"front-0": "10.0.0.11", "front-1": "10.0.0.12", "node-0": "10.0.0.21", "node-1": "10.0.0.22"}
NODES = [address for name, address in PODS.items() if name.startswith("node")]
OLLAMA, CARDS = "127.0.0.1:11434", "127.0.0.1:11499"
CARD = "GPU-00000000-0000-0000-0000-000000000000"
MODEL = "llama3.2:3b"
WHY_NOT = functools.cache(why_not)


class Pod:
    """One pod of the chart: its files below a folder, its commands, and its environment."""

    def __init__(self, chart: Rendered, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._chart, self._component = chart, name.partition("-")[0]
        self._replaced = {
            MOUNTED: str(folder),
            "/var/lib/ollama-router": str(folder / "state"),
            "/run/cards": str(folder),
        }
        for part in ("config", "key", "state", "bin"):
            (folder / part).mkdir(parents=True)
        (folder / "config/router.yaml").write_text(self._placed(chart.written(self._component)))
        (item,) = chart.volume(self._component, "key")["secret"]["items"]
        (folder / "key" / item["path"]).write_text(chart.one("Secret")["stringData"][item["key"]])
        (folder / "bin/ollama-router").write_text(PROGRAM)
        (folder / "bin/ollama-router").chmod(0o755)
        (folder / "gpus").write_text(f'["{CARD}"]\n')  # what Ollama's container says of the cards it was given

    def _placed(self, text: str) -> str:
        for path, instead in self._replaced.items():
            text = text.replace(path, instead)
        return text

    @property
    def argv(self) -> list[str]:
        container = self._chart.router(self._component)
        return [self._placed(part) for part in container.get("command", ["ollama-router"]) + container.get("args", [])]

    @property
    def env(self) -> dict[str, str]:
        probe = "OLLAMA_ROUTER_BACKENDS__LOCAL__PROBE__"
        simulated = {f"{probe}KIND": "prometheus", f"{probe}URL": f"http://{CARDS}/metrics"}
        return {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            **values_of(self._chart.router(self._component).get("env", [])),
            **{variable: self.name for variable, _ in self._chart.fields(self._component)},
            **(simulated if self._component == "node" else {}),
        }


@pytest.fixture(scope="module")
def cluster(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Run two fronts and two nodes."""
    if WHY_NOT():
        pytest.skip(WHY_NOT())
    chart, folder = Rendered(results["seen and reached"]["objects"]), tmp_path_factory.mktemp("cluster")
    (backend,) = chart.plain("front")["backends"].values()
    simulate = (sys.executable, "-m", "router", "simulate", "--gpu", "24564", "--models", MODEL)
    with network({**PODS, "client": "10.0.0.2"}) as net, (folder / "log").open("w") as log:
        for name in PODS:
            if name.startswith("node"):
                env = {**os.environ, "PYTHONPATH": str(ROOT)}
                net.start(name, *simulate, "--listen", OLLAMA, "--gpu-metrics", CARDS, env=env, log=log)
                net.wait_for(name, f"http://{OLLAMA}/api/version")
            net.know(name, {backend["discover"]["dns"]: NODES})
            pod = Pod(chart, name, folder / name)
            net.start(name, *pod.argv, env=pod.env, log=log)
        for name in PODS:
            net.wait_for(name, "http://127.0.0.1:11436/healthz")
        yield net


def curl(net: Network, url: str, *more: str) -> tuple[int, str]:
    """Return status and body of a request of a client."""
    argv = net.on("client", "curl", "-s", "-m", "60", "-w", "\n%{http_code}", url, *more)
    body, _, status = subprocess.run(argv, capture_output=True, text=True).stdout.rpartition("\n")
    return int(status), body


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def test_probes_find_every_pod_ready_by_its_address_n11(cluster: Network) -> None:
    """As the kubelet asks, without a key."""
    for address in PODS.values():
        assert curl(cluster, f"http://{address}:11436/healthz")[0] == 200
        until(lambda: curl(cluster, f"http://{address}:11436/readyz")[0] == 200)  # noqa: B023


def test_metrics_need_the_key_of_the_service_monitor_n11(cluster: Network) -> None:
    """Of fronts and of nodes."""
    for address in PODS.values():
        url = f"http://{address}:11436/metrics"
        assert curl(cluster, url)[0] == 401
        status, text = curl(cluster, url, "-H", f"Authorization: Bearer {ADMIN_KEY}")
        assert (status, "ollama_router" in text) == (200, True)


def test_every_front_serves_by_the_names_of_its_service_and_route_n11(cluster: Network) -> None:
    """And by no other."""
    body = json.dumps({"model": MODEL, "prompt": "[[tokens=2]] hello", "stream": False})
    for name, address in PODS.items():
        if not name.startswith("front"):
            continue
        url = f"http://{address}:11435/api/generate"
        for host in ("fleet-ollama-router", "fleet-ollama-router.llm.svc:11434", "a.llm.example", "ollama.example"):
            status, text = curl(cluster, url, "-H", f"Host: {host}", "-d", body)
            assert (status, json.loads(text)["done"]) == (200, True), host
        assert curl(cluster, url, "-H", "Host: elsewhere.example", "-d", body)[0] == 403


def test_nodes_count_the_cards_that_their_ollama_was_given_n11(cluster: Network) -> None:
    """By the file of Ollama's container, before anything is loaded."""
    for address in NODES:
        status, text = curl(cluster, f"http://{address}:11436/router/state", "-H", f"Authorization: Bearer {ADMIN_KEY}")
        assert status == 200
        assert [gpu["uuid"] for gpu in json.loads(text)["gpus"]] == [CARD]


def test_a_node_refuses_who_does_not_have_the_key_n6(cluster: Network) -> None:
    """A client that gets past the policies of the network."""
    for path in ("/router/node", "/router/node/catalog"):
        assert curl(cluster, f"http://{NODES[0]}:11435{path}")[0] == 401
