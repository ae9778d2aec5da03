"""The cards of one Ollama: the newest reading, who holds what of them, and what others have left free lately.

A lost probe: the last reading holds for `stale_after_s`, then memory counts as unknown (verify mode). A probe that only
states what an empty card has (`is_measured` False) is corrected by what the residents are booked with.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from router.adapters.gpu.reading import GpuProcess, ProbeReading, VramProbe
from router.adapters.ollama import PsRow
from router.backend.epoch import Epoch
from router.backend.residents import Residents, Tracked
from router.config import Config, Gpus
from router.core.ollama.runner import Gpu
from router.errors import ProbeError
from router.telemetry import ProbeBack, ProbeLost, Telemetry

NO_GPU_S = 60.0
"""A machine that turned out to have no GPU is taken for one this long; then it is tried again."""

CEILING_S = 600.0
"""What a spill without a probe has taught about the cards' size holds this long."""

BACK_SHARE = 0.9
"""This share of what a runner held must be free again before its memory counts as back."""

DEAD_SHARE = 0.5
"""A runner of whose memory the probe sees more than this share free again has died, whatever ps shows."""


class Cards:
    """See the module. `gpus` restricts the cards: "auto" (all), "none", or indexes and UUIDs."""

    def __init__(
        self,
        probe: VramProbe | None,
        residents: Residents,
        epoch: Epoch,
        telemetry: Telemetry,
        gpus: Gpus,
        config: Config,
    ) -> None:
        self.probe = probe
        self._residents = residents
        self._epoch = epoch
        self._telemetry = telemetry
        self._chosen = None if isinstance(gpus, str) else gpus
        self._has_gpu = gpus != "none"
        self._config = config
        self._reading: ProbeReading | None = None
        self._is_probe_lost = False
        self._no_gpu_until_s = -math.inf
        self._ceiling: tuple[float, int] | None = None  # until when, and bytes
        self._floors: deque[tuple[float, dict[int, int]]] = deque()  # when, and what others left of each card
        self._returning: tuple[float, dict[int, int]] = (-math.inf, {})  # until when at most, and what is awaited
        self._now = asyncio.get_running_loop().time

    # --- reading -----------------------------------------------------------------------------------------------

    async def read(self, *, is_fresh: bool) -> None:
        """Read the probe. A failure keeps the last reading, and is reported once until the probe works again."""
        if self.probe is None:
            return
        try:
            reading = await self.probe.read(is_fresh=is_fresh)
        except ProbeError as error:
            if not self._is_probe_lost:
                self._is_probe_lost = True
                self._telemetry.emit(ProbeLost(probe=self.probe.name, error=error.message))
            return
        if self._is_probe_lost:
            self._is_probe_lost = False
            self._telemetry.emit(ProbeBack(probe=self.probe.name))
        if self._reading is None or reading.gpus != self._reading.gpus:
            self._epoch.advance()
        self._reading = reading

    @property
    def gpus(self) -> tuple[Gpu, ...] | None:
        """The cards, restricted to those of the backend; None = no reading; () = there is no GPU."""
        if not self._has_gpu or self._now() < self._no_gpu_until_s:
            return ()
        if self._reading is None or self._now() - self._reading.taken_at_s > self._config.snapshot.stale_after_s:
            return None
        gpus: tuple[Gpu, ...] = self._reading.gpus
        if self._chosen is not None:
            chosen = [gpu for gpu in gpus if gpu.index in self._chosen or gpu.uuid in self._chosen]
            gpus = tuple(replace(gpu, index=index) for index, gpu in enumerate(chosen))
        return gpus if self.is_measured else tuple(self._less_residents(gpu) for gpu in gpus)

    @property
    def is_measured(self) -> bool:
        """True when the probe sees what loads take; a static one only states what an empty card has."""
        return self.probe is not None and self.probe.is_live

    @property
    def processes(self) -> Iterable[GpuProcess]:
        """Processes on the cards, where the probe can name them."""
        return self._reading.processes if self._reading else ()

    def _less_residents(self, gpu: Gpu) -> Gpu:
        return replace(gpu, free_bytes=max(0, gpu.free_bytes - self._residents.held_on(gpu.index)))

    # --- who holds what ----------------------------------------------------------------------------------------

    def guess_held(self, row: PsRow) -> dict[int, int]:
        """Bytes per card that an unmeasured runner holds: what ps shows on the fullest cards, plus a context."""
        gpus = self.gpus
        if not gpus:
            return {}
        if not self.is_measured:
            roomiest = max(gpus, key=lambda gpu: gpu.free_bytes)
            return {roomiest.index: row.size_vram_bytes + roomiest.context_bytes}
        left, held = row.size_vram_bytes, {}
        known = [tracked for tracked in self._residents.values() if tracked.row is not row]
        for gpu in sorted(gpus, key=lambda gpu: gpu.free_bytes - gpu.total_bytes):
            others = sum(tracked.held_bytes.get(gpu.index, 0) for tracked in known)
            share = min(left, max(0, gpu.total_bytes - gpu.free_bytes - others))
            if share > 0:
                held[gpu.index] = min(share + gpu.context_bytes, gpu.total_bytes - gpu.free_bytes - others)
                left -= share
        return held

    def assumed_on(self, row: PsRow, cards: tuple[int, ...]) -> dict[int, int]:
        """Bytes per card of a runner that no probe measures: what ps shows, and a context, on each of `cards` alike."""
        context = {gpu.index: gpu.context_bytes for gpu in self.gpus or ()}
        share = row.size_vram_bytes // max(1, len(cards))
        return {card: share + context.get(card, 0) for card in cards}

    def reconcile(self) -> None:
        """After a reading: assume again what was not measured."""
        if not self.is_measured:
            return
        for tracked in self._residents.values():
            if not tracked.is_measured and (held := self.guess_held(tracked.row)) != tracked.held_bytes:
                self._residents.assume(tracked, held)

    def find_dead(self) -> list[Tracked]:
        """Measured residents whose memory is free again: their runners died, although ps shows them until their next
        request, which would load them again behind our back.
        """
        dead = []
        measured = [tracked for tracked in self._residents.values() if tracked.is_measured]
        for gpu in self.gpus or ():
            missing = sum(t.held_bytes.get(gpu.index, 0) for t in measured) - (gpu.total_bytes - gpu.free_bytes)
            for tracked in sorted(measured, key=lambda t: -t.held_bytes.get(gpu.index, 0)):
                held = tracked.held_bytes.get(gpu.index, 0)
                if held and missing > held * DEAD_SHARE and not (tracked.is_spilled or tracked in dead):
                    dead.append(tracked)
                    missing -= held
        return dead

    # --- what others leave -------------------------------------------------------------------------------------

    def note_floor(self, *, is_switching: bool) -> None:
        """Remember what others leave of each card now; not during a switch, when memory is moving."""
        gpus, now_s = self.gpus, self._now()
        while self._floors and self._floors[0][0] < now_s - self._config.defaults.upgrade_after_s:
            self._floors.popleft()
        if gpus and not is_switching and not self.is_memory_returning():
            self._floors.append((now_s, self._left_by_others(gpus)))

    def floor_bytes(self) -> dict[int, int]:
        """The least per card that was not taken by others over `upgrade_after_s`; a card without history is absent."""
        floors: dict[int, int] = {}
        for _, left in self._floors:
            for card, count in left.items():
                floors[card] = min(floors.get(card, count), count)
        return floors

    def _left_by_others(self, gpus: tuple[Gpu, ...]) -> dict[int, int]:
        """What each card would have free without the residents."""
        return {gpu.index: gpu.free_bytes + self._residents.held_on(gpu.index) for gpu in gpus}

    # --- memory on its way -------------------------------------------------------------------------------------

    def expect_back(self, gone: Tracked) -> None:
        """A model left /api/ps without our unloading it. Its memory, and the probe's reading of it, may lag."""
        if self._floors and self.is_measured and gone.is_measured:
            late = {card: int(held * (1 - BACK_SHARE)) for card, held in gone.held_bytes.items()}
            left = {card: count - late.get(card, 0) for card, count in self._floors[-1][1].items()}
            self._returning = self._now() + self._config.switch.memory_timeout_s, left

    def is_memory_returning(self) -> bool:
        """True while the cards do not show yet what a resident that has gone has given back."""
        until_s, left = self._returning
        gpus = self.gpus if self._now() < until_s else None
        if gpus and any(count < left.get(card, 0) for card, count in self._left_by_others(gpus).items()):
            return True
        self.memory_is_back()
        return False

    def memory_is_back(self) -> None:
        """Await nothing any more: the memory was seen, or an unload of ours has waited for it."""
        self._returning = -math.inf, {}

    # --- what loads have taught about the cards ----------------------------------------------------------------

    def mark_no_gpu(self) -> None:
        """A model loaded alone showed no VRAM at all: there is no GPU, requests pass unchanged, for `NO_GPU_S`."""
        self._no_gpu_until_s = self._now() + NO_GPU_S
        self._epoch.advance()

    def retry_gpu(self) -> None:
        """Ollama has restarted: it may see a GPU now."""
        self._no_gpu_until_s = -math.inf

    def note_ceiling(self, placed_bytes: int) -> None:
        """Without a probe: a model that had the cards for itself placed this many bytes, and spilled."""
        self._ceiling = (self._now() + CEILING_S, placed_bytes)
        self._epoch.advance()

    def ceiling_bytes(self) -> int | None:
        """What `note_ceiling` has taught, while it holds."""
        return self._ceiling[1] if self._ceiling is not None and self._now() < self._ceiling[0] else None
