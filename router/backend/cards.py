"""The cards of one Ollama: the latest reading, which model holds how much, and what other programs left free lately.

If the probe fails, its last reading is used for `stale_after_s`; then memory counts as unknown (verify mode), as it
does if a configured card is not there, or the probe does not see what Ollama loads. A probe that only knows the size of
an empty card (`is_measured` is False) is corrected by what the residents are booked with. Cards have Ollama's numbers
(`card_identity.py`), which loads correct (`load_check.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress

from router.adapters.gpu.reading import GpuProcess, VramProbe
from router.adapters.ollama import PsRow
from router.backend.capacity import Capacity
from router.backend.card_identity import CardNumbers
from router.backend.epoch import Epoch
from router.backend.floors import Floors, Steps
from router.backend.guesses import among_used, dead, less_held, on_roomiest, spread
from router.backend.latest_reading import LatestReading
from router.backend.load_check import LoadCheck
from router.backend.residents import Residents
from router.backend.returning import NOTHING
from router.backend.tracked import Tracked
from router.config import Config, Gpus
from router.core.decision.switching import Plan
from router.core.decision.upgrades import MOST_PATIENCE
from router.core.ollama.runner import Gpu
from router.telemetry import Telemetry

LOOK_S = 0.5
"""How long a request waits at most for a reading of the probe."""

LATELY_S = 0.05
"""A reading that began so shortly before a request is as good as one that began with it."""

NO_GPU_S = 60.0
"""For this long a machine on which a load used no GPU counts as one without; then a load is tried again."""


class Cards:
    """The cards of one Ollama. `gpus` selects them: "auto" (all), "none", or indexes and UUIDs in Ollama's order.

    `key` is where the configuration does so, for messages.
    """

    def __init__(
        self,
        probe: VramProbe | None,
        residents: Residents,
        epoch: Epoch,
        telemetry: Telemetry,
        gpus: Gpus,
        config: Config,
        key: str = "backends.local.gpus",
    ) -> None:
        self.probe = probe
        self.numbers = CardNumbers(gpus)
        self.check = LoadCheck(self.numbers, telemetry, key)
        self._residents = residents
        self._epoch = epoch
        self._has_gpu = gpus != "none"
        self._config = config
        self._key = key
        self._latest = LatestReading(probe, telemetry, config.snapshot.stale_after_s)
        self._no_gpu_until_s = -math.inf
        history_s = max(MOST_PATIENCE * config.defaults.max_load_wait_s, config.defaults.upgrade_after_s or 0.0)
        self._floors = Floors(history_s)
        self._returning = NOTHING
        self.capacity = Capacity(epoch)
        self._now = asyncio.get_running_loop().time

    # --- reading -----------------------------------------------------------------------------------------------

    async def read(self, *, is_fresh: bool) -> None:
        """Read the probe. On failure keep the last reading; report once per outage."""
        if await self._latest.read(is_fresh=is_fresh):  # an equal reading keeps the cached decisions
            self._epoch.advance()
        if (gpus := self.shown) is None:
            return
        numbers = self.numbers.by_uuid()
        if self.numbers.take(gpus):  # new cards void what was learned of the others' numbers
            self.check.forget()
            self._renumber(numbers)
        self.check.note_gone(gpus)
        self.capacity.note_cards(self.numbered(gpus) or ())

    async def look(self) -> None:
        """Read the probe for a request, unless it was read a moment ago; one that hangs holds it up for LOOK_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self.read(is_fresh=False)

    def are_known_at(self, since_s: float) -> bool:
        """Return True unless there is a probe of which the latest reading is older than a request that came then."""
        return self.probe is None or self._latest.taken_at_s >= since_s - LATELY_S

    @property
    def gpus(self) -> tuple[Gpu, ...] | None:
        """The cards of the backend by Ollama's numbers; None if their memory is unknown, () if there is no GPU."""
        if not self._has_gpu or self._now() < self._no_gpu_until_s:
            return ()
        gpus = self.numbered(self.shown)
        return gpus if gpus is None or self.is_measured else less_held(gpus, self._residents.held_on)

    @property
    def shown(self) -> tuple[Gpu, ...] | None:
        """The cards that the probe lists, by its own numbers; None if there is no valid reading."""
        return self._latest.gpus

    @property
    def may_lack_gpu(self) -> bool:
        """True if nothing says that Ollama has a GPU: no probe, or only chips that it ignores unless told otherwise."""
        return self.probe is None or (all(gpu.is_optional for gpu in self.shown or ()) and bool(self.shown))

    @property
    def is_unprobed(self) -> bool:
        """True if the memory is only known by what ps shows: there is no probe, or it does not see Ollama's cards."""
        return self.probe is None or self.check.is_blind

    def unmatched(self) -> str:
        """Return what is wrong with the configured cards, "" if nothing is or no probe could be read."""
        problem = self.numbers.unmatched(self.shown) if self.shown is not None else ""
        return f"{self._key}: {problem}" if problem else ""

    def notes(self) -> list[str]:
        """Return sentences for the operator: what is not as the probe or the configuration says."""
        return [*self.check.notes(), *([self.unmatched()] if self.gpus is None and self.unmatched() else [])]

    # --- what loads say about the cards --------------------------------------------------------------------------

    def compare_load(
        self, plan: Plan, row: PsRow, before: tuple[Gpu, ...] | None, after: tuple[Gpu, ...] | None
    ) -> bool:
        """Correct the numbers by where a load went, by the probe's own; return True if it went astray."""
        if before is None or after is None:
            return False
        numbers = self.numbers.by_uuid()
        if has_strayed := self.check.compare(plan, row, before, after):
            self._renumber(numbers)
        self._epoch.advance()
        return has_strayed

    def note_sight(self, *, is_unseen: bool) -> None:
        """Count a load that ps calls whole and that the probe has not seen: after two it is not believed."""
        if is_unseen:
            self.check.note_unseen(self.shown or ())
            self._epoch.advance()

    def is_refusal(self, plan: Plan, weights: str, error: str) -> bool:
        """Return True if a load failed for the number of its card, which is not used again."""
        numbers = self.numbers.by_uuid()
        is_refusal = self.check.is_refusal(plan, weights, error, self.gpus or ())
        if is_refusal or self.numbers.by_uuid() != numbers:  # else the history of what others left stays
            self._renumber(numbers)
        return is_refusal

    def _renumber(self, before: Mapping[str, int]) -> None:
        """Apply changed numbers to all that is kept by number; `before` are those until now by UUID."""
        now = self.numbers.by_uuid()
        self._residents.renumber({number: now[uuid] for uuid, number in before.items() if uuid in now})
        self._floors.clear()
        self.memory_is_back()
        self._epoch.advance()

    @property
    def is_measured(self) -> bool:
        """True if the probe sees the memory that loads take; a static probe only knows the size of an empty card."""
        return self.probe is not None and self.probe.is_live

    def measured_since(self, since_s: float) -> tuple[Gpu, ...] | None:
        """Return the cards by a reading taken at loop time `since_s` or later; None without one that measures loads."""
        return (self.gpus or None) if self.shown_since(since_s) is not None else None

    def shown_since(self, since_s: float) -> tuple[Gpu, ...] | None:
        """Return the same by the probe's own numbers, also of a probe that is not believed."""
        return self.shown if self.is_measured and self._latest.taken_at_s >= since_s else None

    def numbered(self, shown: tuple[Gpu, ...] | None) -> tuple[Gpu, ...] | None:
        """Return the cards of a reading by the numbers now, None if the probe is not believed."""
        return None if shown is None or self.check.is_blind else self.numbers.numbered(shown)

    @property
    def processes(self) -> Iterable[GpuProcess]:
        """The processes on the cards, if the probe can list them, by the numbers of `gpus`."""
        return self._latest.processes(self.numbers.by_uuid())

    # --- who holds what ----------------------------------------------------------------------------------------

    def guess_held(self, row: PsRow) -> dict[int, int]:
        """Return the bytes per card that an unmeasured runner is assumed to hold: ps' figure on the fullest cards."""
        gpus = self.gpus
        if not gpus:
            return {}
        if not self.is_measured:
            return on_roomiest(row, gpus)
        return among_used(row, gpus, [tracked for tracked in self._residents.values() if tracked.row is not row])

    def assumed_on(self, row: PsRow, cards: tuple[int, ...]) -> dict[int, int]:
        """Return the bytes per card of a runner that no probe measures: ps' figure split evenly, plus a context."""
        return spread(row, self.gpus or (), cards)

    def reconcile(self) -> None:
        """Update the assumed memory of unmeasured residents after a reading."""
        if not self.is_measured:
            return
        for tracked in self._residents.values():
            if not tracked.is_measured and (held := self.guess_held(tracked.row)) != tracked.held_bytes:
                self._residents.assume(tracked, held)

    def find_dead(self) -> list[Tracked]:
        """Return the measured residents that have died, and are not marked yet: ps lists them until a request comes."""
        return [one for one in dead(self.gpus or (), self._residents.values()) if not one.is_spilled]

    # --- what others leave -------------------------------------------------------------------------------------

    def note_floor(self, *, is_switching: bool) -> None:
        """Record what other programs leave of each card now; not during a switch, which changes the figures itself."""
        gpus, now_s = self.gpus, self._now()
        self._floors.expire(now_s)
        if gpus and not is_switching and not self.is_memory_returning():
            self._floors.note(now_s, self._left_by_others(gpus))

    def left_bytes(self) -> Steps:
        """Return the least that others left of each card since when, in bytes; {} without history."""
        return self._floors.steps(self._now())

    @property
    def undisturbed(self) -> tuple[Gpu, ...] | None:
        """The cards during a switch: with what others left before it, less the residents, whatever a load has taken."""
        return self._floors.undisturbed(self.gpus, self._residents.held_on)

    def hold_floor(self, *, is_switching: bool) -> None:
        """Let decisions during a switch go by the reading that it was decided by."""
        gpus = self.undisturbed if self.is_memory_returning() else self.gpus
        self._floors.hold(self._left_by_others(gpus) if gpus and is_switching else None)

    def _left_by_others(self, gpus: tuple[Gpu, ...]) -> dict[int, int]:
        """Return the bytes that each card would have free without the residents (one that died is still booked)."""
        held_on = self._residents.held_on
        return {gpu.index: min(gpu.total_bytes, gpu.free_bytes + held_on(gpu.index)) for gpu in gpus}

    # --- memory on its way -------------------------------------------------------------------------------------

    def expect_back(self, gone: Tracked) -> None:
        """Wait for the memory of a model that left /api/ps without our unloading it: the probe's reading may lag."""
        last, timeout_s = self._floors.last(), self._config.switch.memory_timeout_s
        if last is not None and self.is_measured and gone.is_measured:
            self._returning = self._returning.and_of(gone, last, self._now(), timeout_s)

    def is_memory_returning(self) -> bool:
        """Return True while the probe does not show yet the memory that a departed resident has returned."""
        gpus = (self.gpus or ()) if self._now() < self._returning.until_s else ()
        total = {gpu.index: gpu.total_bytes for gpu in gpus}
        if self._returning.is_late(self._left_by_others(gpus), total, self._floors.noted_at_s, self.has_moved_since):
            return True
        self.memory_is_back()
        return False

    def has_moved_since(self, since_s: float) -> bool:
        """Return True if free memory has moved since the loop time `since_s`, and has come to rest: it is all back."""
        return self._latest.has_moved_since(since_s)

    def memory_is_back(self) -> None:
        """Stop waiting: the probe has seen the memory, or an unload of ours has waited for it."""
        self._returning = NOTHING

    # --- what loads have taught about the cards ----------------------------------------------------------------

    def mark_no_gpu(self) -> None:
        """Assume for `NO_GPU_S` that there is no GPU, because a load used no VRAM; requests pass unchanged then."""
        self._no_gpu_until_s = self._now() + NO_GPU_S
        self._epoch.advance()

    def forget(self) -> None:
        """Forget what loads have taught about the cards."""
        self.capacity.forget()
        self.retry_gpu()
        self._epoch.advance()

    def retry_gpu(self) -> None:
        """Drop what loads have taught about Ollama's cards: it has counted them again, and may see others now."""
        self._no_gpu_until_s, before = -math.inf, self.numbers.by_uuid()
        self.check.forget()
        self.numbers.forget()
        if (gpus := self.shown) is not None:
            self.numbers.take(gpus)
            if self.numbers.by_uuid() != before:  # else what others leave, and memory on its way, is still known
                self._renumber(before)
