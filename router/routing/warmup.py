"""Loads without a request: `keep:` and `preload:` models, and bigger variants at idle times (`upgrade: idle`).

Runs in the background at start, after a restart of Ollama, and whenever no request waits. Its loads go through the same
queue as requests, so they interrupt none, and a kept model evicts nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress

from router.backend.backend import Backend
from router.config import ChainRules
from router.core.decision.chain import Chain
from router.core.decision.verdict import Verdict, VerdictKind
from router.core.payload.read import InferenceRequest
from router.errors import RouterError
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.ruled import RuledChain, RulesInForce

CHECK_S = 1.0
"""Polling interval."""

MAX_ATTEMPTS = 8
"""Maximum number of turns in the queue for one load: the state may change before each."""

PRELOAD_S = 120.0
"""How long after a start models to preload are tried: later ones would take the place of what is used."""

AGAIN_S = 60.0
"""Minimum time between two attempts to load the same name."""


Wanted = tuple[str, ChainRules]
"""A name to load, and the chain rules by which it has its chain."""


Mine = Callable[[str, str, ChainRules], bool]
"""Returns whether a backend, by its name, is the one to load a wanted model: of several, one does."""


class Warmup:
    """Keeps the wanted models loaded while no request waits. `is_mine` knows the other backends; None: it is alone."""

    def __init__(
        self,
        backend: Backend,
        decisions: Decisions,
        chains: Chains,
        rules: RulesInForce,
        is_mine: Mine | None = None,
    ) -> None:
        self._name, self._is_mine = backend.name, is_mine
        self._now = backend.now
        self._world = backend.world
        self._line = backend.line
        self._decisions = decisions
        self._chains = chains
        self._in_force = rules
        self._to_preload: list[Wanted] = []
        self._preload_until_s = -math.inf
        self._not_before_s: dict[Wanted, float] = {}

    def restart(self) -> None:
        """Schedule all kept and preloaded models: Ollama has started or restarted."""
        self._to_preload = [*self._kept(), *self._in_force.book.preloads()]
        self._preload_until_s = self._now() + PRELOAD_S
        self._not_before_s.clear()

    async def watch(self) -> None:
        """Check every `CHECK_S` until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            if self._world.is_up and not self._line.depth:
                with suppress(RouterError):
                    await self.check()

    async def check(self) -> None:
        """Load the scheduled models, then missing kept models, then idle upgrades."""
        # In this order: a preload may evict, a kept model may not, and an upgrade only within its own chain.
        waiting, self._to_preload = self._to_preload, []
        for wanted in waiting:
            await self._warm(wanted, self._may_preload)
            if not self._is_served(wanted) and self._now() < self._preload_until_s:
                self._to_preload.append(wanted)  # nothing of it fits now: runners of before may still hold the memory
        for wanted in self._kept():
            await self._warm(wanted, lambda chosen, _chain: not _evicted(chosen))
        for wanted in self._decisions.recent_chains():
            if self._chains.rule(*wanted).upgrade == "idle" and not self._line.depth:
                await self._warm(wanted, self._may_go_up)

    def _kept(self) -> list[Wanted]:
        book = self._in_force.book
        return [(name, book.chains) for name in book.defaults.keep]

    def _may_preload(self, chosen: Verdict, _chain: Chain) -> bool:
        """Return True if a preload evicts no model that is to be kept or preloaded itself."""
        names = (name for name, _ in (*self._kept(), *self._in_force.book.preloads()))
        wanted = {self._world.installed.weights_of(name) for name in names}
        return not wanted.intersection(_evicted(chosen))

    def _may_go_up(self, chosen: Verdict, chain: Chain) -> bool:
        """Return True if the load replaces a smaller variant of its own chain, and evicts nothing else that is used."""
        own = {self._world.installed.weights_of(variant.model) for variant in chain.variants}
        others = [one for one in self._world.snapshot().residents if one.weights in {*_evicted(chosen)} - own]
        return chosen.is_upgrade and not any(one.is_company or one.kept for one in others)

    async def _warm(self, wanted: Wanted, may: Callable[[Verdict, Chain], bool]) -> None:
        name, rules = wanted
        if self._is_elsewhere(wanted):
            return
        if self._decisions.lacks_facts(name, rules):
            await self._decisions.read_facts(name, rules)
        now_s = self._now()
        chain = self._chains.find(name, self._decisions.catalog(), rules=rules)
        if chain is None or now_s < self._not_before_s.get(wanted, 0.0):
            return
        request = InferenceRequest(name)
        if self._wants(request, chain, may):
            # Set before the load, so that one that fails is not repeated with each check.
            self._not_before_s[wanted] = now_s + AGAIN_S
            await self._make_resident(request, chain)

    def _is_elsewhere(self, wanted: Wanted) -> bool:
        return self._is_mine is not None and not self._is_mine(self._name, *wanted)

    def _is_served(self, wanted: Wanted) -> bool:
        """Return whether a variant of the chain is loaded, is another backend's to load, or none can ever be."""
        name, rules = wanted
        if self._is_elsewhere(wanted):
            return True
        chain = self._chains.find(name, self._decisions.catalog(), rules=rules)
        if chain is None:
            return True
        chosen = self._decisions.decide(InferenceRequest(name), chain).chosen
        return chosen is not None and chosen.resident is not None

    def _wants(self, request: InferenceRequest, chain: RuledChain, may: Callable[[Verdict, Chain], bool]) -> bool:
        """Return True if a load is possible without waiting, and `may` allows it."""
        chosen = self._decisions.decide(request, chain).chosen
        if chosen is None or chosen.plan is None or chosen.kind is VerdictKind.WAITS:
            return False
        return may(chosen, chain)

    async def _make_resident(self, request: InferenceRequest, chain: RuledChain) -> None:
        """Wait in the queue until the variant that would serve `request` is loaded."""
        for _ in range(MAX_ATTEMPTS):
            chosen = self._decisions.decide(request, chain).chosen
            if chosen is None or chosen.resident is not None:  # nothing fits any more, or it is loaded
                return
            key = self._decisions.key(request, chain)
            await self._line.wait(key, lambda: self._decisions.decide_afresh(request, chain), self._now())


def _evicted(chosen: Verdict) -> tuple[str, ...]:
    return chosen.plan.evict if chosen.plan is not None else ()
