"""What is loaded without a request: `keep:` and `preload:` models, and bigger variants at idle time (`upgrade: idle`).

Runs in the background, at start, after a restart of Ollama and whenever nothing waits. It stands in the same line as
requests do, so it never cuts one, and it evicts nothing for a kept model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from router.chains import Chains
from router.core.catalog import Chain
from router.core.payload import InferenceRequest
from router.core.policy import VerdictKind
from router.dispatch import Dispatcher
from router.errors import RouterError
from router.queueing import Line
from router.world import World

CHECK_S = 1.0
AGAIN_S = 60.0
"""A name that could not be loaded is tried again after this."""


class Warmup:
    """Keeps the wanted models loaded while nobody waits."""

    def __init__(
        self,
        world: World,
        line: Line,
        dispatcher: Dispatcher,
        chains: Chains,
        *,
        keep: Iterable[str],
        preload: Iterable[str],
    ) -> None:
        self._world = world
        self._line = line
        self._dispatcher = dispatcher
        self._chains = chains
        self._keep = tuple(keep)
        self._preload = tuple(preload)
        self._to_preload: list[str] = []
        self._not_before_s: dict[str, float] = {}

    def restart(self) -> None:
        """Ollama has (re)started: everything is to be loaded again."""
        self._to_preload = [*self._keep, *self._preload]
        self._not_before_s.clear()

    async def watch(self) -> None:
        """Look for ever; the owner cancels it."""
        while True:
            await asyncio.sleep(CHECK_S)
            if self._world.is_up and not self._line.depth:
                with suppress(RouterError):
                    await self.check()

    async def check(self) -> None:
        """One round: preload what is due, bring kept models back, go up where a chain says so."""
        while self._to_preload:
            await self._warm(self._to_preload.pop(0), may_evict=True)
        for name in self._keep:
            await self._warm(name, may_evict=False)
        for chain in self._dispatcher.recent_chains():
            if self._chains.rule(chain.name).upgrade == "idle" and not self._line.depth:
                await self._warm(chain.name, may_evict=True)

    async def _warm(self, name: str, *, may_evict: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        chain = self._chains.find(name, self._world.catalog)
        if chain is None or now_s < self._not_before_s.get(name, 0.0):
            return
        request = InferenceRequest(name)
        if self._wants(request, chain, may_evict=may_evict):
            self._not_before_s[name] = now_s + AGAIN_S
            await self._dispatcher.make_resident(request, chain)

    def _wants(self, request: InferenceRequest, chain: Chain, *, may_evict: bool) -> bool:
        """True when a load is due and would disturb nobody."""
        chosen = self._dispatcher.decide(request, chain).chosen
        if chosen is None or chosen.plan is None or chosen.kind is VerdictKind.WAITS:
            return False
        return may_evict or not chosen.plan.evict
