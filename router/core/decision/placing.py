"""Planning a switch for given victims, pure: on which cards the model is loaded once they are gone.

A plan is sound if the model fits by llama.cpp's own arithmetic *and* Ollama certainly loads it where the plan does
(`foreseen.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from types import EllipsisType

from router.core.decision.foreseen import Books, Cleared
from router.core.decision.need import MachineRules, MemoryNeed
from router.core.decision.plan import TOO_BIG, Plan, Shortage
from router.core.decision.victims import Evicted, named
from router.core.memory.placement import Placement
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions


class Placing:
    """A load that is to be placed.

    `same` are those that go in any case, older runners of the same weights above all. With `may_pin` a model on one of
    several cards is pinned with `main_gpu`, unless that number may be another card's and Ollama chooses the right one
    by itself; a split one is not.
    """

    __slots__ = (
        "_books", "_facts", "_least_split", "_may_pin", "_obstacles", "_options", "_rules", "_same", "_splits",
        "_unproven", "memory", "needs",
    )  # fmt: skip

    def __init__(
        self,
        facts: ModelFacts,
        options: LoadOptions,
        memory: MemoryNeed,
        rules: MachineRules,
        books: Books,
        same: Evicted,
        may_pin: bool,
    ) -> None:
        self._facts, self._options, self.memory, self._rules = facts, options, memory, rules
        self._books, self._same, self._may_pin = books, same, may_pin
        self._unproven = books.snapshot.unproven
        gpus = books.snapshot.gpus or ()
        self.needs = {gpu.index: memory.need_bytes(gpu) for gpu in gpus}
        self._least_split = least_of_split(memory, gpus)
        self._splits: dict[int, Placement] = {}  # by who is gone
        self._obstacles: dict[int, str] = {}

    def cleared(self, others: Evicted) -> Cleared:
        """Return the cards as they are after `same` and `others` were unloaded."""
        return self._books.cleared((*self._same, *others))

    def without(self, others: Evicted, only: int | EllipsisType | None = ...) -> Plan | None:
        """Plan on the cards as they are after `same` and `others` were unloaded; return None if no plan is sound.

        Single cards come first, from the tightest to the roomiest, so that a big card stays free, then all together;
        with `only` this one card alone (None = only all together).
        """
        cleared = self.cleared(others)
        if only is not None:
            for gpu in _singles(cleared, only):
                if self.needs[gpu.index] > gpu.free_bytes:
                    continue
                options, reason = self._on_card(gpu, cleared)
                if not reason:
                    return _plan(options, (*self._same, *others), self.memory.on((gpu,)), self.memory)
        if not _may_split(cleared, only) or not self._may_hold(cleared):
            return None
        if self.split_obstacle(cleared) or not self.split(cleared).fits:
            return None
        options = self._options.at(self._options.num_ctx)
        return _plan(options, (*self._same, *others), self.split(cleared), self.memory)

    def miss(self, others: Evicted, only: int | EllipsisType | None = ...) -> Shortage:
        """Return by what the plan that `without` did not find is missed: the nearest miss of all places."""
        cleared = self.cleared(others)
        misses = [self._single_miss(gpu, cleared) for gpu in _singles(cleared, only)]
        if _may_split(cleared, only):
            misses.append(self._split_miss(cleared))
        return reduce(nearer, misses)

    def is_too_big(self, others: Evicted) -> bool:
        """Return whether the model is too big even without `others`: nothing else is nearly in the way of it."""
        cleared = self.cleared(others)
        if any(self.needs[gpu.index] <= gpu.free_bytes for gpu in cleared.gpus):
            return False
        if not _may_split(cleared, ...) or not self._may_hold(cleared) or not self.split(cleared).fits:
            return True
        return bool(self.split_obstacle(cleared)) and self.miss(others).reason == TOO_BIG

    def _on_card(self, gpu: Gpu, cleared: Cleared) -> tuple[LoadOptions, str]:
        """Return the options of a load on `gpu` alone, and what is in its way; "" = nothing."""
        is_pinned = self._may_pin and len(cleared.gpus) > 1
        if is_pinned and self._may_stray(gpu, cleared.gpus) and not self._obstacle(None, (gpu,), cleared):
            return self._options.at(self._options.num_ctx), ""  # Ollama finds the card without its number
        options = self._options.at(self._options.num_ctx, gpu.index) if is_pinned else self._options
        return options, self._obstacle(options.main_gpu, (gpu,), cleared)

    def _single_miss(self, gpu: Gpu, cleared: Cleared) -> Shortage:
        need = self.needs[gpu.index]
        return Shortage(need, gpu.free_bytes, TOO_BIG if need > gpu.free_bytes else self._on_card(gpu, cleared)[1])

    def _may_stray(self, gpu: Gpu, gpus: tuple[Gpu, ...]) -> bool:
        """Return whether the number of `gpu` may be that of a card which is too small."""
        unproven = self._unproven
        if gpu.index not in unproven:
            return False
        return any(self.needs[other.index] > other.free_bytes for other in gpus if other.index in unproven)

    def _may_hold(self, cleared: Cleared) -> bool:
        """Return whether all cards together may hold the model. If their sum is too little, no layer is laid out."""
        return self._least_split <= cleared.have_bytes

    def split(self, cleared: Cleared) -> Placement:
        """Return the layers on all cards together."""
        found = self._splits.get(cleared.gone)
        if found is None:
            found = self._splits[cleared.gone] = self.memory.on(cleared.gpus)
        return found

    def split_obstacle(self, cleared: Cleared) -> str:
        """Return what is in the way of all cards together; "" = nothing but perhaps the room."""
        found = self._obstacles.get(cleared.gone)
        if found is None:
            found = self._obstacles[cleared.gone] = self._obstacle(None, cleared.gpus, cleared)
        return found

    def _split_miss(self, cleared: Cleared) -> Shortage:
        have = cleared.have_bytes
        if not self._may_hold(cleared):  # too big even without margins
            return Shortage(self._least_split, have, TOO_BIG)
        placement = self.split(cleared)
        if placement.fits:
            return Shortage(placement.need_bytes, have, self.split_obstacle(cleared))
        return Shortage(max(placement.need_bytes, have + 1), have, TOO_BIG)

    def _obstacle(self, main_gpu: int | None, group: tuple[Gpu, ...], cleared: Cleared) -> str:
        """Return why the load would not go as planned; "" if nothing is in the way."""
        cards = tuple([gpu.index for gpu in group])
        if reason := self._books.obstacle(self.memory.asked_of(main_gpu), cards, cleared, self._rules.settings):
            return reason
        free = min([gpu.free_bytes for gpu in group])
        if self._rules.learned.banned(self._facts.weights, self.memory.asked, free, self._rules.now_s):
            return "it spilled before at this free level"
        return ""


def _singles(cleared: Cleared, only: int | EllipsisType | None) -> Sequence[Gpu]:
    return cleared.by_free if only is ... else [gpu for gpu in cleared.gpus if gpu.index == only]


def _may_split(cleared: Cleared, only: int | EllipsisType | None) -> bool:
    return len(cleared.gpus) > 1 and not isinstance(only, int)


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
