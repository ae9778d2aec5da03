"""How Ollama determines free memory, and how it waits for memory to return after an unload."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from ollama_simulator.machine.cards import Cards
from ollama_simulator.scheduler.runner import Runner
from router.core.ollama.bookkeeping import Free, OllamaResident, frozen_free, less_booked, live_free
from router.core.ollama.options import EffectiveOptions
from router.core.ollama.recovery import ENTRIES

QUERY_S = 0.06
"""Duration of a device query: two short runs of llama-server."""
GIVE_UP_S = 3.0
"""Timeout of a device query; after it the old figures stay in use."""
TICK_S = 0.25
RECOVERY_S = 5.0


class Discovery:
    """Free memory as Ollama determines it: from figures stored at load time, or from a query of the devices."""

    def __init__(self, cards: Cards, rng: random.Random) -> None:
        self._cards, self._rng = cards, rng
        self._figures: list[int] = list(live_free(cards.gpus()))
        self._lock = asyncio.Lock()

    async def believed(self, residents: Sequence[Runner], launch: EffectiveOptions) -> Free:
        """Bytes per card that Ollama considers free ahead of a load. A load without GPU layers causes no query."""
        if launch.num_gpu == 0:
            await asyncio.sleep(0)
            return live_free(self._cards.gpus())
        raw = await self._refreshed(self.walk(residents))
        return less_booked(self._cards.gpus(), raw, [runner.resident() for runner in residents])

    def walk(self, residents: Sequence[Runner]) -> list[Runner]:
        """Return the residents in the order of a walk over Ollama's map of runners, which begins at a random entry."""
        first = self._rng.randrange(ENTRIES)
        return sorted(residents, key=lambda runner: (runner.entry - first) % ENTRIES)

    async def baseline(self, residents: Sequence[Runner]) -> int:
        """Free bytes of all cards ahead of an unload, the victim still among the residents, which are read in order."""
        return sum(await self._refreshed(residents))

    async def recovered(self, before: int, freed_bytes: int, others: Sequence[Runner]) -> None:
        """Wait for memory as Ollama does, with the `others` in the same order as for the baseline.

        Its difference is unsigned, so a figure below the baseline ends the wait.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline, tick = started + RECOVERY_S, started + TICK_S
        while tick < deadline:
            await asyncio.sleep(max(0.0, tick - loop.time()))
            now = sum(await self._refreshed(others, deadline))
            if (now - before) % (1 << 64) > 0.75 * freed_bytes:
                return
            while tick <= loop.time():
                tick += TICK_S
        await asyncio.sleep(max(0.0, deadline - loop.time()))

    async def _refreshed(self, residents: Sequence[Runner], deadline: float | None = None) -> Free:
        """Figures per card: from the residents in this order, or from a query if a card has no resident."""
        async with self._lock:
            order: list[OllamaResident] = [runner.resident() for runner in residents]
            frozen = frozen_free(self._cards.gpus(), order)
            self._figures = [old if new is None else new for new, old in zip(frozen, self._figures, strict=True)]
            if None in frozen:
                await self._query(deadline)
            return tuple(self._figures)

    async def _query(self, deadline: float | None) -> None:
        patience_s = GIVE_UP_S
        if deadline is not None:
            patience_s = min(patience_s, max(0.0, deadline - asyncio.get_running_loop().time()))
        takes_s = QUERY_S + self._cards.machine.discovery_s
        await asyncio.sleep(min(takes_s, patience_s))
        if takes_s <= patience_s:
            self._figures = list(live_free(self._cards.gpus()))
