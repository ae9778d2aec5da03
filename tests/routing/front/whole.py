"""Fronts before real nodes before simulated Ollamas, in one process on one virtual clock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.app import Running, running
from router.config import load_config
from router.planning.stage import Stage, stage
from tests.config.keys.play import ALONE, MODELS, SPEEDS, get, record, send
from tests.routing.front.proxy import FaultProxy, fault_proxy

KEY = "node-key-0123456789"


@dataclass
class Fleet:
    """Running fronts and nodes. `nodes` are the stages of the nodes by name, `proxies` are in front of each."""

    fronts: list[Running]
    nodes: dict[str, Stage]
    proxies: dict[str, FaultProxy] = field(default_factory=dict)

    async def ask(
        self,
        body: Mapping[str, Any],
        path: str = "/api/generate",
        front: int = 0,
        headers: Sequence[Any] = (),
        method: str = "POST",
    ):
        """Send a request; return its status, its node, and the answer."""
        reply = await send(self.fronts[front].url, method, path, body, headers)
        return reply.status, reply.headers.get("x-router-backend", ""), reply

    async def get(self, target: str, front: int = 0):
        return await get(self.fronts[front].url, target)

    async def admin(self, target: str, front: int = 0):
        return (await get(self.fronts[front].admin_url, target)).json()

    @property
    def loads(self) -> list[tuple[str, str]]:
        """The loads that Ollamas have begun: node and model."""
        return [(name, model) for name, one in self.nodes.items() for model in one.loads]

    @property
    def spilled(self) -> list[str]:
        return [load.model for one in self.nodes.values() for load in one.loaded if load.is_spilled]

    def residents(self, name: str) -> list[str]:
        return sorted(row.model.name for row in self.nodes[name].sim.engine.ps())


@asynccontextmanager
async def fleet(
    cards: Mapping[str, Sequence[int]],
    tmp_path: Path,
    *,
    fronts: int = 1,
    config: Mapping[str, object] = ALONE,
    models: Sequence[str] | Mapping[str, Sequence[str]] = MODELS,
    **sim: Any,
):
    """Run a node per entry of `cards`, which maps names to the MiB of their cards, and fronts with `config`."""
    key_file, hash_file = tmp_path / "node.key", tmp_path / "node.sha256"
    key_file.write_text(KEY + "\n")
    hash_file.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    async with AsyncExitStack() as stack:
        nodes, proxies = {}, {}
        for name, sizes in cards.items():
            specs = tuple(CardSpec(name=f"{name}{index}", total_mib=size) for index, size in enumerate(sizes))
            machine = Machine(cards=specs, speeds=SPEEDS, free_lag_s=0.0)
            installed = models[name] if isinstance(models, Mapping) else models
            own = {"node.name": name, "node.key_sha256_file": str(hash_file), **ALONE}
            wanted = SimConfig(machine=machine, models=tuple(installed), **sim)
            nodes[name] = await stack.enter_async_context(stage(wanted, own))
            proxies[name] = await stack.enter_async_context(fault_proxy(nodes[name].url))
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "backends.local.kind": "node",
            "backends.local.key_file": str(key_file),
            "backends.local.discover.static": [proxies[name].url for name in nodes],
            **config,
        }
        loaded = load_config(env={}, options=options)
        began = [await stack.enter_async_context(running(loaded)) for _ in range(fronts)]
        await record(began[0].admin_url)
        yield Fleet(began, nodes, proxies)


def play(story, cards, tmp_path, **more):
    """Return what `story` returns for a fleet, on a virtual clock."""

    async def run():
        async with fleet(cards, tmp_path, **more) as one:
            return await story(one)

    return run_virtual(run())
