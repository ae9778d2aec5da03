"""What a front costs: the choice of a node, and a front before a node against a single router.

    python bench/front.py [--seconds 3] [--rounds 5] [--choice]

First the choice, in CPU time: for a model that is held, for one that is loaded nowhere, and what the index costs per
view, with 1,000 nodes and 200 models. Then chats through a single router and through a front and a node, in turns:
upstream and clients are on core 1, routers on core 0, as in bench/relay.py, whose nginx and wrk are needed. This twice:
with the node beside its upstream on core 1, since it and its front run on machines of their own, and with both on
core 0, where each drives the other's code out of the cache. With `--choice` only the first part.

Exit code 1 if a choice among holders takes more than 20 microseconds, or the median of the ratios of the medians of
the times, with one client and a core for each router, is more than 1.7.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fleet import node_model

from router.core.decision.chain import Chain, Variant
from router.core.decision.context import ContextRules
from router.core.nodes.catalog import NodeCatalog, NodeModel, NodeNeed
from router.core.nodes.choice import Choice
from router.core.nodes.index import Index
from router.core.nodes.state import Models, NodeState
from router.core.nodes.view import NodeGpu, NodeResident, NodeView
from router.core.nodes.wanted import Wanted, wanted_of
from router.core.payload.read import InferenceRequest
from router.core.units import GIB

MOST_PICK_S, MOST_RATIO = 20e-6, 1.7
SIMULATOR, UPSTREAM, SINGLE, NODE, FRONT = 18740, 18741, 18742, 18743, 18744
KEY = "the-key-of-the-bench-0123456789"


def model(number: int, size: int) -> NodeModel:
    """Return a model."""
    return node_model(number, size, (NodeNeed(8192, size + GIB), NodeNeed(131072, size + 8 * GIB)), 5.0)


def fleet(nodes: int, models: int) -> Index:
    """Return an index of nodes with one card of 12 or 24 GB each, which hold two models."""
    dice, index = random.Random(1), Index()
    sizes = [dice.choice((2, 4, 5, 9, 9, 14, 20)) * GIB for _ in range(models)]
    catalog = Models(NodeCatalog.of(tuple(model(number, size) for number, size in enumerate(sizes))))
    for at in range(nodes):
        total = (24 if at % 2 else 12) * GIB
        held = [at % models, *dice.sample(range(models), 1)]
        residents = tuple(
            NodeResident(
                weights=f"w{number}",
                context=32768,
                is_full=True,
                in_flight=dice.randrange(4),
                held_bytes=(4 * GIB,),
            )
            for number in held
        )
        view = NodeView(
            name=f"n{at}",
            boot_id="b",
            seq=1,
            version="1",
            is_up=True,
            draining=False,
            memory="probed",
            gpus=(NodeGpu(f"GPU-{at}", total, total - 8 * GIB),),
            residents=residents,
        )
        index.put(NodeState.of(view.name, view, catalog))
    return index


def wanted_in(index: Index) -> list[Wanted]:
    """Return what plain requests for each model want."""
    rules = ContextRules()
    chains = (Chain(facts.name, (Variant(facts.name),)) for facts in index.catalog.values())
    return [wanted_of(InferenceRequest(chain.name), chain, index.catalog, rules) for chain in chains]


def choices(nodes: int = 1000, models: int = 200, picks: int = 20000) -> tuple[float, float, float]:
    """Return the CPU seconds of a choice among holders, of one for a model that is held nowhere, and of a view."""
    index, dice = fleet(nodes, models), random.Random(2)
    choice, wanted = Choice(index, lambda _node, _weights: 0), wanted_in(index)
    asked = [(dice.choice(wanted), partial(int, dice.getrandbits(56))) for _ in range(picks)]
    began_s = time.process_time()
    for one, conversation in asked:
        choice.pick(one, conversation, 0.0)
    pick_s = (time.process_time() - began_s) / picks
    states = list(index)
    began_s = time.process_time()
    for state in states:
        index.put(NodeState.of(state.name, NodeView.from_json(state.view.to_json()), state.models, 0.0))
    view_s = (time.process_time() - began_s) / len(states)
    for state in states:  # now nobody holds anything
        empty = NodeView.from_json(state.view.to_json().replace(b'"is_full":true', b'"is_full":false'))
        index.put(NodeState.of(state.name, empty, state.models, 0.0))
    for one in wanted:
        choice.pick(one, int, 0.0)  # each model's order of the nodes is made once
    began_s = time.process_time()
    for one in wanted:
        choice.pick(one, int, 0.0)
    return pick_s, (time.process_time() - began_s) / len(wanted), view_s


# --- processes ---------------------------------------------------------------------------------------------------


async def serve(role: str, folder: str) -> None:
    """Run one of the routers with all features, as bench/relay_parts.py does."""
    from router.app import running
    from router.cli.garbage import calm_collector
    from router.config import load_config
    from router.telemetry import LineWriter, LogHook

    port = {"single": SINGLE, "node": NODE, "front": FRONT}[role]
    options: dict[str, object] = {
        "listen": f"127.0.0.1:{port}",
        "admin": "127.0.0.1:0",
        "limits.pool": 2048,
        "limits.connections": 4096,
        "store.path": ":memory:",
    }
    if role == "front":
        options["backends.local.kind"] = "node"
        options["backends.local.key_file"] = f"{folder}/key"
        options["backends.local.discover.static"] = [f"http://127.0.0.1:{NODE}"]
    else:
        card = {"name": "bench", "total_mib": 24564, "free_mib": 22000}
        options["backends.local.url"] = f"http://127.0.0.1:{UPSTREAM}"
        options["backends.local.probe"] = {"kind": "static", "gpus": [card]}
    if role == "node":
        options |= {"node.name": "gpu-a", "node.key_sha256_file": f"{folder}/sha256"}
    async with running(load_config(env={}, options=options), hooks=[LogHook(sink=LineWriter())]):
        calm_collector()
        await asyncio.Event().wait()


@contextmanager
def stage(node_core: int) -> Iterator[dict[str, Any]]:
    """Run upstream, simulator and the three routers; yield the processes of these by their roles."""
    from relay_parts import nginx, python, started, upstream_conf

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder, "key").write_text(KEY)
        Path(folder, "sha256").write_text(hashlib.sha256(KEY.encode()).hexdigest())
        stack.enter_context(started(python("simulate", SIMULATOR), SIMULATOR, 1))
        stack.enter_context(nginx(upstream_conf(UPSTREAM, SIMULATOR, None), UPSTREAM, 1))
        routers = {
            role: stack.enter_context(
                started([sys.executable, __file__, "--role", role, "--folder", folder], port, core)
            )
            for role, port, core in (("single", SINGLE, 0), ("node", NODE, node_core), ("front", FRONT, 0))
        }
        time.sleep(2)
        yield routers


class Way:
    """What requests have cost on one way, for each round: the median of their times, and CPU time per request."""

    def __init__(self, port: int, roles: tuple[str, ...]) -> None:
        self.port, self.roles = port, roles
        self.p50_s: list[float] = []
        self.cpu_s: list[float] = []

    def measure(self, routers: dict[str, Any], clients: int, seconds: int) -> None:
        """Send requests for some seconds."""
        from relay import wrk

        before_s = sum(routers[role].cpu_s() for role in self.roles)
        found = wrk(self.port, clients, seconds, None)
        cpu_s = sum(routers[role].cpu_s() for role in self.roles) - before_s
        self.p50_s.append(found["p50_s"])
        self.cpu_s.append(cpu_s / (found["per_s"] * seconds))


def ways(seconds: int, rounds: int, node_core: int) -> dict[int, tuple[Way, Way]]:
    """Return what a single router and a front with a node cost, by the number of clients."""
    found = {clients: (Way(SINGLE, ("single",)), Way(FRONT, ("front", "node"))) for clients in (1, 32)}
    with stage(node_core) as routers:
        for way in found[1]:
            Way(way.port, way.roles).measure(routers, 1, 1)  # the model is loaded, and code is warm
        for _ in range(rounds):
            for clients, pair in found.items():
                for way in pair:
                    way.measure(routers, clients, seconds)
    return found


def shown_ways(where: str, found: dict[int, tuple[Way, Way]]) -> float:
    """Print what was measured; return the ratio of the medians of the times with one client."""
    ratios: dict[tuple[int, str], float] = {}
    print(f"{where}:")
    for clients, (single, front) in found.items():
        for what, one, other in (("p50", single.p50_s, front.p50_s), ("CPU", single.cpu_s, front.cpu_s)):
            each = [second / first for first, second in zip(one, other, strict=True)]
            middle = ratios[clients, what] = statistics.median(each)
            first, second = statistics.median(one) * 1e6, statistics.median(other) * 1e6
            shown = f"a single router {first:.0f} us, front and node {second:.0f} us"
            print(f"  {clients:2} clients, {what}: {shown}: {middle:.2f} times ({min(each):.2f} to {max(each):.2f})")
    return ratios[1, "p50"]


def main() -> int:
    """Print what a front costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--choice", action="store_true")
    parser.add_argument("--role", choices=("single", "node", "front"))
    parser.add_argument("--folder", default="")
    asked = parser.parse_args()
    if asked.role:
        import uvloop

        uvloop.run(serve(asked.role, asked.folder))
        return 0
    pick_s, cold_s, view_s = choices()
    print("CPU time with 1,000 nodes and 200 models:")
    print(f"  a choice among the holders of a model   {pick_s * 1e6:8.1f} us")
    print(f"  a choice for a model that nobody holds  {cold_s * 1e6:8.1f} us")
    print(f"  a view, read and taken into the index   {view_s * 1e6:8.1f} us")
    if asked.choice:
        return 0 if pick_s <= MOST_PICK_S else 1
    own = shown_ways("the node on another core", ways(asked.seconds, asked.rounds, 1))
    shown_ways("all on one core", ways(asked.seconds, asked.rounds, 0))
    return 0 if pick_s <= MOST_PICK_S and own <= MOST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
