"""A probe of the virtual cards: what NVML would say of them, in process."""

from __future__ import annotations

import asyncio

from router.adapters.gpu import ProbeReading
from router.simulator.cards import Cards


class CardsProbe:
    """Free memory per virtual card; `lag_s` makes each reading that slow. Implements `VramProbe`."""

    name = "virtual"

    def __init__(self, cards: Cards, lag_s: float = 0.0) -> None:
        self._cards = cards
        self.lag_s = lag_s

    async def read(self) -> ProbeReading:
        """The cards as they are now."""
        if self.lag_s:
            await asyncio.sleep(self.lag_s)
        return ProbeReading(tuple(self._cards.gpus()), asyncio.get_running_loop().time(), ())

    async def aclose(self) -> None:
        """Nothing to close."""
