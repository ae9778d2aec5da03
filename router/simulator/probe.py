"""A probe of the virtual cards: what NVML would say of them, in process."""

from __future__ import annotations

import asyncio

from router.adapters.gpu import GpuProcess, ProbeReading
from router.errors import ProbeError
from router.simulator.cards import Cards

FIRST_PID = 1000


class CardsProbe:
    """Free memory and processes per virtual card. Implements `VramProbe`.

    `lag_s` makes each reading that slow, `is_lost` makes it fail, as a driver can.
    """

    name = "virtual"
    is_live = True

    def __init__(self, cards: Cards, lag_s: float = 0.0) -> None:
        self._cards = cards
        self._pids: dict[str, int] = {}
        self.lag_s = lag_s
        self.is_lost = False

    async def read(self) -> ProbeReading:
        """The cards as they are now. Raises ProbeError while the driver is lost."""
        if self.lag_s:
            await asyncio.sleep(self.lag_s)
        if self.is_lost:
            raise ProbeError("GPU is lost")
        processes = (
            GpuProcess(card, self._pids.setdefault(who, FIRST_PID + len(self._pids)), name, size)
            for who, name, card, size in self._cards.holders()
        )
        return ProbeReading(self._cards.gpus(), asyncio.get_running_loop().time(), tuple(processes))

    async def aclose(self) -> None:
        """Nothing to close."""
