"""The conclusions from a load that has returned: book it and learn from it, or undo it before a request reaches it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from router.backend.lessons import Lessons
from router.backend.switches import SwitchResult, Target
from router.backend.tracked import Tracked
from router.backend.unloading import Unloading
from router.backend.verification import LoadLook, Placed, came_back, taken_between, used_all_cards
from router.backend.world import World
from router.core.ollama.runner import Gpu
from router.core.units import GIB, MIB
from router.telemetry import Spilled, Telemetry

CEILING_SLACK_BYTES = GIB
"""Without a probe: memory that may be unused beside a load that spilled (part of a layer, margins)."""

OTHERS_BYTES = 512 * MIB
"""A spill does not count against the model if other programs took more than this during its load."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A load with what was seen of it.

    `before` are the cards just before it, `after` a valid reading after it. `has_left`: another resident left during
    the load; `has_evicted`: one did that the router had not begun to unload. `together_bytes` is what all residents
    would hold together, those that left included. `has_strayed`: it went to another card than was meant, because Ollama
    counts them otherwise.
    """

    target: Target
    tracked: Tracked
    before: tuple[Gpu, ...] | None
    after: tuple[Gpu, ...] | None
    look: LoadLook
    has_left: bool
    has_evicted: bool = False
    together_bytes: int = 0
    has_strayed: bool = False


class Conclusions:
    """Draws the conclusions on one backend."""

    def __init__(self, world: World, lessons: Lessons, unloading: Unloading, telemetry: Telemetry) -> None:
        self._residents = world.residents
        self._cards = world.cards
        self._lessons = lessons
        self._unloading = unloading
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time

    async def draw(self, load: Verified) -> tuple[SwitchResult, str]:
        """Draw the conclusions from a verified load: book it and learn from it, or undo it."""
        target, tracked, look = load.target, load.tracked, load.look
        if look.placed is Placed.ON_CPU and not self._is_gpu_in_use(load):
            return await self._use_no_gpu(tracked)
        if look.is_measured:
            tracked.measured(dict(look.taken))
        elif not self._cards.is_measured and target.plan.cards:
            self._residents.assume(tracked, self._cards.assumed_on(tracked.row, target.plan.cards))
        if look.placed is not Placed.FULL:
            return await self._undo(load)
        context = tracked.row.context_length  # None before 0.9.7: nothing says that it is another one
        # A model whose maximum is not known was cut to it by Ollama.
        if context is not None and target.facts.context_length and context < (target.plan.options.num_ctx or 0):
            await self._unloading.unload(tracked)
            return SwitchResult.MOVED, f"it was loaded with a context of {context} only"
        if load.has_evicted and load.before is None:  # Ollama made room itself: not all of it fitted
            self._cards.capacity.note_ceiling(load.together_bytes)
        if look.is_measured or not look.has_readings:
            self._learn(load, is_spilled=False)
        return SwitchResult.DONE, ""

    def _is_gpu_in_use(self, load: Verified) -> bool:
        """Return True if a load has nothing on the GPU because others are there: it is a spill like any other."""
        others = [one for one in self._residents.values() if one is not load.tracked]
        if any(one.row.size_vram_bytes for one in others):
            return True
        plan, free = load.target.plan, {gpu.index: gpu.free_bytes for gpu in load.after or ()}
        needs = zip(plan.cards, plan.need_by_card, strict=True)
        return load.after is not None and any(free.get(card, 0) < need for card, need in needs)

    async def _use_no_gpu(self, tracked: Tracked) -> tuple[SwitchResult, str]:
        """Handle a load of which nothing is on the GPU: a finding about the machine, so nothing is learned."""
        if self._cards.may_lack_gpu:
            self._cards.mark_no_gpu()
            return SwitchResult.MOVED, "the load used no VRAM: there is no GPU"
        self._residents.spilled(tracked)
        self._residents.assume(tracked, {})  # no memory of a card will come back
        await self._unloading.unload(tracked)
        return SwitchResult.ON_CPU, f"{tracked.name} was loaded onto the CPU: Ollama uses no GPU"

    async def _undo(self, load: Verified) -> tuple[SwitchResult, str]:
        """Unload a model that has spilled, before a request reaches it, and find out whether others were the cause."""
        tracked, row = load.tracked, load.tracked.row
        self._residents.spilled(tracked)  # first: no request may enter it while it is being unloaded
        if load.has_strayed:  # to a card that the plan did not reckon with: nothing to learn of the model
            await self._unloading.unload(tracked)
            return (
                SwitchResult.MOVED,
                "it went to another card, because Ollama counts them otherwise",
            )
        is_alone = len(self._residents) == 1
        placed_bytes = sum(other.row.size_vram_bytes for other in self._residents.values())
        if load.look.placed is not Placed.DOUBTED:
            self._report_spill(load)
        unloading_s = self._now()
        await self._unloading.unload(tracked)
        unloaded = self._cards.measured_since(unloading_s)
        if load.look.placed is Placed.DOUBTED:
            if came_back(row, load.after, unloaded):
                return SwitchResult.MOVED, "other programs gave memory back during the load"
            self._report_spill(load)
        if load.before is not None and unloaded is not None:
            taken = taken_between(load.before, unloaded)
            if max((taken.get(card, 0) for card in load.target.plan.cards), default=0) > OTHERS_BYTES:
                return SwitchResult.MOVED, "other programs took memory during the load"
        if load.before is None:
            self._cards.capacity.note_ceiling(placed_bytes + CEILING_SLACK_BYTES)
        if load.before is not None or is_alone:  # without a probe it may fit when the others have gone
            self._learn(load, is_spilled=True)
        return SwitchResult.SPILLED, f"{row.size_bytes - row.size_vram_bytes} bytes were not on the GPU"

    def _report_spill(self, load: Verified) -> None:
        row, payer = load.tracked.row, load.target.payer
        event = Spilled(load.tracked.name, row.size_bytes, row.size_vram_bytes, team=payer.team, key_id=payer.key_id)
        self._telemetry.emit(event)

    def _learn(self, load: Verified, *, is_spilled: bool) -> None:
        plan = load.target.plan
        is_guess = not load.target.facts.info  # sized by its download: the difference teaches nothing
        if plan.adopts or load.has_left or is_guess:
            return
        if not (is_spilled or used_all_cards(plan, load.look)):  # predicted for other cards
            return
        counted = plan.counted.num_ctx if plan.counted is not None else None
        if not is_spilled and (load.tracked.row.context_length or counted or 0) < (counted or 0):
            return  # Ollama has chosen a smaller context than was predicted for
        taken_bytes = load.look.taken_bytes
        self._lessons.learn(
            load.target.facts, plan, load.tracked.row, load.before, taken_bytes=taken_bytes, is_spilled=is_spilled
        )
