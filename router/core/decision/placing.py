"""Planning a switch for given victims, pure: on which cards the model is loaded once they are gone.

A plan is sound if the model fits by llama.cpp's own arithmetic *and* Ollama certainly loads it where the plan does
(`foreseen.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import EllipsisType

from router.core.decision.foreseen import Books, Cleared
from router.core.decision.need import MachineRules, MemoryNeed
from router.core.decision.plan import TOO_BIG, Plan, Shortage
from router.core.decision.snapshot import Snapshot
from router.core.decision.victims import Evicted, named
from router.core.memory.placement import Placement
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions


@dataclass(frozen=True, slots=True)
class Placing:
    """A load that is to be placed.

    `same` are those that go in any case, older runners of the same weights above all. With `may_pin` a model on one of
    several cards is pinned with `main_gpu`, unless that number may be another card's and Ollama chooses the right one
    by itself; a split one is not.
    """

    facts: ModelFacts
    options: LoadOptions
    memory: MemoryNeed
    snapshot: Snapshot
    rules: MachineRules
    books: Books
    same: Evicted
    may_pin: bool
    _splits: dict[int, Placement] = field(default_factory=dict)  # by the cards that the books have cleared
    _obstacles: dict[int, str] = field(default_factory=dict)

    def without(self, others: Evicted, only: int | EllipsisType | None = ...) -> Plan | None:
        """Plan on the cards as they are after `same` and `others` were unloaded; return None if no plan is sound.

        Single cards come first, from the tightest to the roomiest, so that a big card stays free, then all together;
        with `only` this one card alone (None = only all together).
        """
        evicted = (*self.same, *others)
        cleared = self.books.cleared(evicted)
        for gpu in self._singles(cleared, only):
            if self.memory.need_bytes(gpu) > gpu.free_bytes:
                continue
            options, reason = self._on_card(gpu, cleared)
            if not reason:
                return _plan(options, evicted, self.memory.on((gpu,)), self.memory)
        if not self._may_split(cleared, only) or self._split_obstacle(cleared) or not self.fits_split(cleared):
            return None
        return _plan(self.options.at(self.options.num_ctx), evicted, self._split(cleared), self.memory)

    def miss(self, others: Evicted, only: int | EllipsisType | None = ...) -> Shortage:
        """Return by what the plan that `without` did not find is missed: the nearest miss of all places."""
        cleared = self.books.cleared((*self.same, *others))
        misses = [self._single_miss(gpu, cleared) for gpu in self._singles(cleared, only)]
        if self._may_split(cleared, only):
            misses.append(self._split_miss(cleared))
        return reduce(nearer, misses)

    def _singles(self, cleared: Cleared, only: int | EllipsisType | None) -> Sequence[Gpu]:
        return cleared.by_free if only is ... else [gpu for gpu in cleared.gpus if gpu.index == only]

    def _may_split(self, cleared: Cleared, only: int | EllipsisType | None) -> bool:
        return len(cleared.gpus) > 1 and not isinstance(only, int)

    def _on_card(self, gpu: Gpu, cleared: Cleared) -> tuple[LoadOptions, str]:
        """Return the options of a load on `gpu` alone, and what is in its way; "" = nothing."""
        is_pinned = self.may_pin and len(cleared.gpus) > 1
        if is_pinned and self._may_stray(gpu, cleared.gpus) and not self._obstacle(None, (gpu,), cleared):
            return self.options.at(self.options.num_ctx), ""  # Ollama finds the card without its number
        options = self.options.at(self.options.num_ctx, gpu.index) if is_pinned else self.options
        return options, self._obstacle(options.main_gpu, (gpu,), cleared)

    def _single_miss(self, gpu: Gpu, cleared: Cleared) -> Shortage:
        need = self.memory.need_bytes(gpu)
        return Shortage(need, gpu.free_bytes, TOO_BIG if need > gpu.free_bytes else self._on_card(gpu, cleared)[1])

    def _may_stray(self, gpu: Gpu, gpus: tuple[Gpu, ...]) -> bool:
        """Return whether the number of `gpu` may be that of a card which is too small."""
        unproven = self.snapshot.unproven
        others = (other for other in gpus if other.index in unproven)
        return gpu.index in unproven and any(self.memory.need_bytes(other) > other.free_bytes for other in others)

    def fits_split(self, cleared: Cleared) -> bool:
        """Return whether all cards together hold the model. If even their sum is too little, no layer is laid out."""
        return least_of_split(self.memory, cleared.gpus) <= cleared.have_bytes and self._split(cleared).fits

    def split_reason(self, others: Evicted) -> str:
        """Return why all cards together do not do once `others` are gone."""
        cleared = self.books.cleared((*self.same, *others))
        return self._split_obstacle(cleared) if self.fits_split(cleared) else TOO_BIG

    def split_without(self, others: Evicted) -> Placement:
        """Return the layers on all cards together once `others` are gone."""
        return self._split(self.books.cleared((*self.same, *others)))

    def _split(self, cleared: Cleared) -> Placement:
        found = self._splits.get(id(cleared))
        if found is None:
            found = self._splits[id(cleared)] = self.memory.on(cleared.gpus)
        return found

    def _split_obstacle(self, cleared: Cleared) -> str:
        found = self._obstacles.get(id(cleared))
        if found is None:
            found = self._obstacles[id(cleared)] = self._obstacle(None, cleared.gpus, cleared)
        return found

    def _split_miss(self, cleared: Cleared) -> Shortage:
        have, least = cleared.have_bytes, least_of_split(self.memory, cleared.gpus)
        if least > have:  # too big even without margins
            return Shortage(least, have, TOO_BIG)
        placement = self._split(cleared)
        if placement.fits:
            return Shortage(placement.need_bytes, have, self._split_obstacle(cleared))
        return Shortage(max(placement.need_bytes, have + 1), have, TOO_BIG)

    def _obstacle(self, main_gpu: int | None, group: tuple[Gpu, ...], cleared: Cleared) -> str:
        """Return why the load would not go as planned; "" if nothing is in the way."""
        cards = [gpu.index for gpu in group]
        launch = self.memory.launch(main_gpu)
        if reason := self.books.obstacle(self.facts, launch, cards, cleared, self.rules.settings):
            return reason
        free = min(gpu.free_bytes for gpu in group)
        if self.rules.learned.banned(self.facts.weights, self.memory.asked, free, self.rules.now_s):
            return "it spilled before at this free level"
        return ""


def nearer(one: Shortage, other: Shortage) -> Shortage:
    """Return the shortage that misses by less."""
    if other.have_bytes - other.need_bytes > one.have_bytes - one.need_bytes:
        return other
    return one


def least_of_split(memory: MemoryNeed, gpus: Sequence[Gpu]) -> int:
    """Return what all cards together must at least have, without margins."""
    return memory.footprint.need_bytes + sum(gpu.context_bytes for gpu in gpus)


def _plan(options: LoadOptions, evicted: Evicted, placement: Placement, memory: MemoryNeed) -> Plan:
    return Plan(
        options=options,
        evict=named(evicted),
        waits_for=named(resident for resident in evicted if resident.in_flight),
        cards=tuple(device.index for device in placement.devices),
        need_bytes=placement.need_bytes,
        have_bytes=sum(device.have_bytes for device in placement.devices),
        need_by_card=tuple(min(device.need_bytes, device.have_bytes) for device in placement.devices),
        expected_bytes=placement.expected_bytes,
        cache_bytes=memory.cache_bytes,
    )
