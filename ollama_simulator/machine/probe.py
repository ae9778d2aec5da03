"""A probe of the virtual cards, in place of NVML."""

from __future__ import annotations

import asyncio

from ollama_simulator.machine.cards import Cards
from router.adapters.gpu.reading import GpuProcess, ProbeReading
from router.errors import ProbeError

FIRST_PID = 1000


class CardsProbe:
    """Free memory and processes per virtual card. Implements `VramProbe`.

    `lag_s`: duration of each reading. `cache_s`: time for which a reading is reused. `is_lost`: readings fail, as they
    do when a driver loses its GPU.
    """

    name = "virtual"
    is_live = True

    def __init__(self, cards: Cards, lag_s: float = 0.0) -> None:
        self._cards = cards
        self._pids: dict[str, int] = {}
        self.lag_s = lag_s
        self.is_lost = False
        self.cache_s = 0.0
        self._last: ProbeReading | None = None

    async def read(self, *, is_fresh: bool = False) -> ProbeReading:
        """Read the cards. Raises ProbeError while `is_lost`."""
        if self.lag_s:
            await asyncio.sleep(self.lag_s)
        if self.is_lost:
            raise ProbeError("GPU is lost")
        now_s = asyncio.get_running_loop().time()
        if self._last is not None and not is_fresh and now_s - self._last.taken_at_s < self.cache_s:
            return self._last
        listed = self._cards.listed()
        places = {gpu.uuid: gpu.index for gpu in listed}
        place = {gpu.index: places[gpu.uuid] for gpu in self._cards.gpus() if gpu.uuid in places}
        processes = (
            GpuProcess(place[card], self._pids.setdefault(who, FIRST_PID + len(self._pids)), name, size)
            for who, name, card, size in self._cards.holders()
            if card in place
        )
        self._last = ProbeReading(listed, now_s, tuple(processes))
        return self._last

    async def aclose(self) -> None:
        """Nothing to close."""
