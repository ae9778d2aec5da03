"""A router in front of several simulated Ollamas, in one process on one virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.config import load_config
from router.core.payload.read import InferenceRequest
from router.http.client.pool import HttpRelay
from router.planning.stage import _client
from router.routing.fleet.place import Place
from router.telemetry import Decided, Event, Finished
from tests.config.keys.play import MODELS, get, record, send

SPEEDS = Speeds(load_mib_per_s=10000, tokens_per_s=100, cpu_tokens_per_s=4)


@dataclass
class Fleet:
    """A running fleet: the simulated Ollamas by name, the router, and what it reported."""

    sims: dict[str, SimulatedOllama]
    router: Running
    client: HttpRelay
    events: list[Event] = field(default_factory=list)
    loads: list[tuple[str, str]] = field(default_factory=list)

    def on(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        self.router.router.telemetry.flush()
        return [event for event in self.events if isinstance(event, kind)]

    async def ask(self, body: Mapping[str, Any], path: str = "/api/generate", headers: Sequence[Any] = ()):
        """Send one request; return its status, the backend that answered, and the answer."""
        reply = await send(self.router.url, "POST", path, body, headers)
        return reply.status, reply.headers.get("x-router-backend", ""), reply

    async def get(self, target: str):
        return await get(self.router.url, target)

    async def admin(self, target: str):
        return (await get(self.router.admin_url, target)).json()

    async def load_everywhere(self, model: str) -> None:
        """Load a model on each backend, as `keep:` does on one."""
        for place in self.router.router.routes.places:
            await self.load(place, model)

    async def load(self, place: Place, model: str) -> None:
        """Load a model on one backend."""
        request, found = InferenceRequest(model), place.decisions.explain(model)
        assert found is not None
        key, decide = place.decisions.key(request, found[0]), place.decisions.decide_afresh
        await place.backend.line.wait(key, partial(decide, request, found[0]), place.backend.now())

    def residents(self, name: str) -> list[str]:
        return sorted(row.model.name for row in self.sims[name].engine.ps())

    def ended(self) -> list[Finished]:
        return self.of(Finished)

    def decided(self) -> list[Decided]:
        return self.of(Decided)


@asynccontextmanager
async def fleet(
    cards: Mapping[str, Sequence[int]],
    config: Mapping[str, object] | None = None,
    *,
    models: Sequence[str] | Mapping[str, Sequence[str]] = MODELS,
    speeds: Speeds = SPEEDS,
    versions: Mapping[str, str] | None = None,
    **sim: Any,
):
    """Run a router in front of an Ollama per entry of `cards`, which maps names to the MiB of their cards."""
    async with AsyncExitStack() as stack:
        sims, probes, loads = {}, {}, []
        options: dict[str, object] = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "store.path": ":memory:"}
        for name, sizes in cards.items():
            specs = tuple(CardSpec(name=f"{name}{index}", total_mib=size) for index, size in enumerate(sizes))
            machine = Machine(cards=specs, speeds=speeds)
            installed = models[name] if isinstance(models, Mapping) else models

            def note(kind: str, model: str, _detail: str, name: str = name) -> None:
                if kind == "starting":
                    loads.append((name, model))

            wanted = replace(SimConfig(machine=machine, models=tuple(installed), **sim), on_event=note)
            if versions is not None:
                wanted = replace(wanted, settings=replace(wanted.settings, version=versions[name]))
            sims[name] = await stack.enter_async_context(running_simulator(wanted))
            probes[name] = CardsProbe(sims[name].cards)
            options[f"backends.{name}.url"] = sims[name].url
        options |= config or {}
        heard: list[Fleet] = []

        class Hook:
            def on(self, event: Event) -> None:
                for one in heard:
                    one.on(event)

        router = await stack.enter_async_context(
            running(load_config(env={}, options=options), probes=probes, hooks=[Hook()], is_probed=True)
        )
        await record(router.admin_url)
        client = _client(router.url)
        heard.append(Fleet(sims, router, client, loads=loads))
        yield heard[0]
        await client.aclose()


def play(story, cards, config=None, **more):
    """Return what `story` returns for a fleet, on a virtual clock."""

    async def run():
        async with fleet(cards, config, **more) as one:
            return await story(one)

    return run_virtual(run())
