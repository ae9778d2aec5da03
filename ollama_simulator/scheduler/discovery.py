"""How the simulated Ollama learns of free memory, and how it waits for it after an unload (scheduler.md §4, §8)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from ollama_simulator.machine.cards import Cards
from ollama_simulator.scheduler.runner import Runner
from router.core.ollama.bookkeeping import Free, OllamaResident, frozen_free, less_booked, live_free
from router.core.ollama.options import Launch

QUERY_S = 0.06
"""One query of the devices: two short starts of llama-server."""
GIVE_UP_S = 3.0
"""A query that takes longer leaves the old figures."""
TICK_S = 0.25
RECOVERY_S = 5.0


class Discovery:
    """Free memory as Ollama sees it: figures frozen in its residents, or a query of the devices."""

    def __init__(self, cards: Cards, rng: random.Random) -> None:
        self._cards, self._rng = cards, rng
        self._figures: list[int] = list(live_free(cards.gpus()))
        self._lock = asyncio.Lock()

    async def believed(self, residents: Sequence[Runner], launch: Launch) -> Free:
        """What Ollama believes to be free per card before a load; nothing is asked for a load without layers."""
        if launch.num_gpu == 0:
            await asyncio.sleep(0)
            return live_free(self._cards.gpus())
        raw = await self._refreshed(residents)
        return less_booked(self._cards.gpus(), raw, [runner.resident() for runner in residents])

    async def baseline(self, residents: Sequence[Runner]) -> int:
        """Σ free before an unload, the victim still among the residents."""
        return sum(await self._refreshed(residents))

    async def recovered(self, before: int, freed_bytes: int, others: Sequence[Runner]) -> None:
        """Ollama's wait for memory: the difference is unsigned, so a figure below the baseline ends it at once."""
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
        """Figures per card: read off the residents in random order, or live when one card has none."""
        async with self._lock:
            order: list[OllamaResident] = [runner.resident() for runner in residents]
            self._rng.shuffle(order)
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
