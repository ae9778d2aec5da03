"""A whole backend on a virtual clock, before a server and cards that exist only in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from unittest.mock import patch

from ollama_simulator.clock import run_virtual
from router.adapters.gpu.reading import VramProbe
from router.adapters.store import LearnedStore, MemoryStore
from router.backend.backend import Backend
from router.backend.switches import Target
from router.backend.tracked import Tracked
from router.config import Config, load_config
from router.core.decision.chain import Chain
from router.core.decision.policy import choose
from router.core.decision.upgrades import UpgradeRule
from router.core.decision.verdict import Decision
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest
from router.http.client.response import Relay, UpstreamResponse
from router.telemetry import Event, Telemetry
from tests.backend.machine import MemoryMachine, weights_of
from tests.core.facts import chain_of
from tests.http.scripted_relay import ScriptedRelay

T = TypeVar("T")
E = TypeVar("E", bound=Event)
UNIX_S = 1_800_000_000.0
"""The wall clock when the loop's time is 0."""


@dataclass
class Heard:
    """A hook that keeps every event."""

    events: list[Event] = field(default_factory=list)

    def on(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Scene:
    """A backend, the machine below it, and what was reported."""

    machine: MemoryMachine
    backend: Backend
    heard: Heard

    def facts(self, facts: ModelFacts) -> ModelFacts:
        """Return the installed model as the backend's catalog has it."""
        return self.backend.installed.catalog[key_of(facts.name)]

    def resident(self, facts: ModelFacts) -> Tracked | None:
        """Its entry in the book."""
        return self.backend.world.residents.get(weights_of(facts))

    def decide(self, *facts: ModelFacts, **more: object) -> Decision:
        """Decide now over the chain of `facts`; `more` is of the request."""
        chain: Chain = chain_of(*(one.name for one in facts))
        rule = UpgradeRule(is_moved_down=True, is_spent=not self.backend.line.may_upgrade())
        snapshot, rules = self.backend.world.snapshot(), self.backend.rules()
        return choose(InferenceRequest(chain.name, **more), chain, snapshot, rules, rule)

    def target(self, facts: ModelFacts, **more: object) -> Target:
        """Return what a switch to `facts` would do now, with somebody who waits for it."""
        chosen = self.decide(facts, **more).chosen
        assert chosen is not None and chosen.plan is not None
        self.backend.world.want({weights_of(facts): 1})
        return Target(self.facts(facts), chosen.plan)

    async def make_resident(self, facts: ModelFacts, **more: object) -> Tracked:
        """Load `facts` as the router loads."""
        await self.backend.residency.switch(self.target(facts, **more))
        tracked = self.resident(facts)
        assert tracked is not None
        return tracked


@asynccontextmanager
async def backend_on(
    machine: MemoryMachine,
    options: Mapping[str, object] | None = None,
    *,
    probe: VramProbe | None = None,
    has_probe: bool = True,
    relay: Relay | None = None,
    store: LearnedStore | None = None,
    is_watched: bool = False,
) -> AsyncIterator[Scene]:
    """Run a backend whose control plane, probe and relay are given; its state is read once, or watched."""
    config: Config = load_config(env={}, options={"store.path": ":memory:", **(options or {})})
    heard, loop = Heard(), asyncio.get_running_loop()
    edges = {
        "client_of": lambda *_: machine,
        "relay_to": lambda *_: relay or ScriptedRelay(lambda _: UpstreamResponse.of(200, [])),
    }
    chosen = (probe or machine.probe) if has_probe else None
    with patch.multiple("router.backend.backend", **edges):
        backend = Backend(
            "local", config, chosen, store or MemoryStore(), Telemetry([heard]), lambda: UNIX_S + loop.time()
        )
    await (backend.start(lambda: None) if is_watched else backend.world.refresh())
    try:
        yield Scene(machine, backend, heard)
    finally:
        await backend.stop()


def play(
    story: Callable[[Scene], Awaitable[T]],
    machine: MemoryMachine,
    options: Mapping[str, object] | None = None,
    **more: object,
) -> T:
    """Run `story` on a fresh scene on a fresh virtual clock; its result."""

    async def run() -> T:
        async with backend_on(machine, options, **more) as scene:
            return await story(scene)

    return run_virtual(run())


async def took_s(work: Awaitable[T]) -> tuple[float, T]:
    """How many seconds of the loop `work` took, and its result."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    result = await work
    return loop.time() - started_s, result
