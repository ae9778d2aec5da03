"""The latest reading of a probe: valid for a while after the probe has failed, which is reported once per outage."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from router.adapters.gpu.reading import GpuProcess, ProbeReading, VramProbe
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.errors import ProbeError
from router.telemetry import ProbeBack, ProbeLost, Telemetry

STILL_S = 1.0
"""Memory that has moved has come to rest when it has stood still this long."""

LEAST_MOVE_BYTES = 64 * MIB
"""Less than this programs take and give back all the time."""


class LatestReading:
    """What `probe` has read last, for `stale_after_s`."""

    def __init__(self, probe: VramProbe | None, telemetry: Telemetry, stale_after_s: float) -> None:
        self._probe = probe
        self._telemetry = telemetry
        self._stale_after_s = stale_after_s
        self._reading: ProbeReading | None = None
        self._is_lost = False
        self._moved_at_s = -math.inf
        self._moved_to: dict[str, int] = {}
        self._now = asyncio.get_running_loop().time

    async def read(self, *, is_fresh: bool) -> bool:
        """Read the probe; return True if the cards differ from those of the last reading. A failure keeps that one."""
        if self._probe is None:
            return False
        try:
            reading = await self._probe.read(is_fresh=is_fresh)
        except ProbeError as error:
            if not self._is_lost:
                self._is_lost = True
                self._telemetry.emit(ProbeLost(probe=self._probe.name, error=error.message))
            return False
        if self._is_lost:
            self._is_lost = False
            self._telemetry.emit(ProbeBack(probe=self._probe.name))
        self._note_moves({gpu.uuid: gpu.free_bytes for gpu in reading.gpus})
        old, self._reading = self._reading, reading
        return old is None or old.gpus != reading.gpus

    def _note_moves(self, free: dict[str, int]) -> None:
        known = self._moved_to
        if free.keys() != known.keys() or any(abs(free[uuid] - known[uuid]) > LEAST_MOVE_BYTES for uuid in free):
            self._moved_to, self._moved_at_s = free, self._now()

    def has_moved_since(self, since_s: float) -> bool:
        """Return True if free memory has moved since the loop time `since_s`, and has come to rest."""
        return since_s < self._moved_at_s <= self._now() - STILL_S

    @property
    def taken_at_s(self) -> float:
        """The loop time of the reading; -inf if there is none."""
        return self._reading.taken_at_s if self._reading is not None else -math.inf

    @property
    def gpus(self) -> tuple[Gpu, ...] | None:
        """The cards by the probe's numbers; None if there is no valid reading."""
        reading = self._reading
        if reading is None or self._now() - reading.taken_at_s > self._stale_after_s:
            return None
        return reading.gpus

    def processes(self, numbers: Mapping[str, int]) -> Iterable[GpuProcess]:
        """Return the processes on the cards, if the probe lists them, under other numbers of the cards by UUID."""
        if self._reading is None:
            return ()
        number = {gpu.index: numbers[gpu.uuid] for gpu in self._reading.gpus if gpu.uuid in numbers}
        found = (process for process in self._reading.processes if process.gpu_index in number)
        return [replace(process, gpu_index=number[process.gpu_index]) for process in found]
