"""The virtual driver: a probe that reads the simulated cards, in the form of the real ones (`adapters/gpu.py`)."""

from __future__ import annotations

import asyncio

from router.adapters.gpu import GpuProcess, ProbeReading
from router.errors import ProbeError
from router.simulator.cards import Cards

FIRST_PID = 1000


class VirtualProbe:
    """A `VramProbe` of simulated cards. `delay_s` makes it slow, `is_lost` makes every reading fail."""

    name = "virtual"

    def __init__(self, cards: Cards, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.is_lost = False
        self._cards = cards
        self._pids: dict[str, int] = {}

    async def read(self) -> ProbeReading:
        """Free memory and processes now. Raises ProbeError while the driver is lost."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.is_lost:
            raise ProbeError("GPU is lost")
        found = self._cards.holders()
        processes = (
            GpuProcess(card, self._pids.setdefault(who, FIRST_PID + len(self._pids)), name, size)
            for who, name, card, size in found
        )
        return ProbeReading(self._cards.gpus(), asyncio.get_running_loop().time(), tuple(processes))

    async def aclose(self) -> None:
        """Nothing to close."""
