"""A node in front of a simulated Ollama, and a front's requests to it, in one process on a virtual clock."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.core.nodes.call import CallRules, CallVariant, NodeCall
from router.core.nodes.catalog import NodeCatalog
from router.core.nodes.declined import NodeDeclined
from router.core.nodes.view import NodeView
from router.planning.stage import Stage, stage
from router.telemetry import Event, Finished
from tests.config.keys.play import ALONE, MODELS, SPEEDS, record, send
from tests.fakes import RawClient, Reply

KEY = "node-key-0123456789"
RULES = CallRules(nothing_fits="refuse", upgrade="on_request", prefer="balanced", max_load_wait_s=60.0)


def call_for(*models: str, name: str = "", **more: Any) -> NodeCall:
    """Return a call whose chain is these models; the last one is what the front has chosen."""
    told = {"team": "research", "rules": RULES, "deadline_s": 60.0, **more}
    return NodeCall(name=name or models[0], chain=tuple(map(CallVariant, models)), **told)


def headers_of(call: NodeCall | bytes | None, key: str | None = KEY) -> list[tuple[str, str]]:
    """Return what a front adds to a request."""
    found = [("Authorization", f"Bearer {key}")] if key is not None else []
    if call is not None:
        value = call if isinstance(call, bytes) else call.to_header()
        found.append(("X-Router-Call", value.decode("latin-1")))
    return found


@dataclass
class NodeStage:
    """A running node. `events` are those that the router has reported."""

    one: Stage
    events: list[Event] = field(default_factory=list)

    def on(self, event: Event) -> None:
        self.events.append(event)

    @property
    def url(self) -> str:
        assert self.one.router is not None
        return self.one.router.url

    @property
    def router(self) -> Any:
        assert self.one.router is not None
        return self.one.router

    async def ask(
        self, call: NodeCall | bytes | None, body: Mapping[str, Any], path: str = "/api/generate", key: str | None = KEY
    ) -> Reply:
        """Send a request as a front does."""
        return await send(self.url, "POST", path, body, headers_of(call, key))

    async def get(self, target: str, key: str | None = KEY) -> Reply:
        return await send(self.url, "GET", target, headers=headers_of(None, key))

    async def view(self) -> NodeView:
        return NodeView.from_json((await self.get("/router/node")).body)

    async def catalog(self) -> NodeCatalog:
        return NodeCatalog.from_json((await self.get("/router/node/catalog")).body)

    async def connected(self) -> RawClient:
        return await RawClient.to(self.router.clients.port)

    def ended(self) -> list[Finished]:
        self.router.router.telemetry.flush()
        return [event for event in self.events if isinstance(event, Finished)]

    def residents(self) -> list[str]:
        return sorted(row.model.name for row in self.one.sim.engine.ps())

    def upstream(self, path: str) -> list[Any]:
        return [found for found in self.one.sim.seen if found.path == path]


def declined(reply: Reply) -> NodeDeclined:
    """Return what a node says that has declined a call."""
    assert reply.status == 421, reply.body
    return NodeDeclined.from_json(reply.body)


def play(
    story: Callable[[NodeStage], Any],
    config: Mapping[str, object] = ALONE,
    *,
    cards: Sequence[int] = (24564,),
    models: Sequence[str] = MODELS,
    is_node: bool = True,
    has_probe: bool = True,
    **sim: Any,
) -> Any:
    """Return what `story` returns for a node with `config`, on a virtual clock."""

    async def run() -> Any:
        async with noded(config, cards=cards, models=models, is_node=is_node, has_probe=has_probe, **sim) as node:
            return await story(node)

    return run_virtual(run())


@asynccontextmanager
async def noded(
    config: Mapping[str, object] = ALONE,
    *,
    cards: Sequence[int] = (24564,),
    models: Sequence[str] = MODELS,
    is_node: bool = True,
    has_probe: bool = True,
    **sim: Any,
) -> AsyncIterator[NodeStage]:
    """Run a node, or with `is_node` False the same router without being one."""
    specs = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(cards))
    machine = Machine(cards=specs, speeds=sim.pop("speeds", SPEEDS), free_lag_s=0.0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fronts.sha256"
        file.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
        own = {"node.name": "gpu-a", "node.key_sha256_file": str(file)} if is_node else {}
        hooks: list[NodeStage] = []

        class Later:
            def on(self, event: Event) -> None:
                for hook in hooks:
                    hook.on(event)

        sim_config = SimConfig(machine=machine, models=tuple(models), **sim)
        async with stage(sim_config, {**own, **config}, has_probe=has_probe, hooks=(Later(),)) as one:
            assert one.router is not None
            await record(one.router.admin_url)
            hooks.append(NodeStage(one))
            await asyncio.sleep(1)  # it knows its models by then
            yield hooks[0]


def told_again(call: NodeCall, **changes: Any) -> bytes:
    """Return the header of a call with fields that no front would send."""
    return base64.urlsafe_b64encode(json.dumps({**msgspec.to_builtins(call), **changes}).encode())
