"""Planning a switch for given victims, pure: on which cards the model is loaded once they are gone.

A plan is sound if the model fits by llama.cpp's own arithmetic *and* Ollama certainly loads it where the plan does
(`foreseen.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from types import EllipsisType

from router.core.decision.foreseen import Books
from router.core.decision.need import MachineRules, MemoryNeed
from router.core.decision.plan import TOO_BIG, Plan, Shortage
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.victims import Evicted, named, without
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

    def without(self, others: Evicted, only: int | EllipsisType | None = ...) -> Plan | Shortage:
        """Plan on the cards as they are after `same` and `others` were unloaded.

        Single cards come first, from the tightest to the roomiest, so that a big card stays free, then all together;
        with `only` this one card alone (None = only all together).
        """
        evicted = (*self.same, *others)
        gpus = cards_without(evicted, self.snapshot.gpus or ())
        stay = without(evicted, self.snapshot.residents)
        misses: list[Shortage] = []
        for gpu in sorted(gpus, key=_by_free) if only is ... else [gpu for gpu in gpus if gpu.index == only]:
            found = self._single(gpu, evicted, gpus, stay)
            if isinstance(found, Plan):
                return found
            misses.append(found)
        if len(gpus) > 1 and not isinstance(only, int):
            found = self._split(evicted, gpus, stay)
            if isinstance(found, Plan):
                return found
            misses.append(found)
        return reduce(nearer, misses)

    def _single(self, gpu: Gpu, evicted: Evicted, gpus: tuple[Gpu, ...], stay: Evicted) -> Plan | Shortage:
        """Plan on `gpu` alone."""
        need = self.memory.need_bytes(gpu)
        if need > gpu.free_bytes:
            return Shortage(need, gpu.free_bytes, TOO_BIG)
        is_pinned = self.may_pin and len(gpus) > 1
        options = self.options.at(self.options.num_ctx, gpu.index) if is_pinned else self.options
        if is_pinned and self._may_stray(gpu, gpus) and not self._obstacle(None, (gpu,), gpus, stay):
            options = self.options.at(self.options.num_ctx)  # Ollama finds the card without its number
        elif reason := self._obstacle(options.main_gpu, (gpu,), gpus, stay):
            return Shortage(need, gpu.free_bytes, reason)
        return _plan(options, evicted, self.memory.on((gpu,)), self.memory)

    def _may_stray(self, gpu: Gpu, gpus: tuple[Gpu, ...]) -> bool:
        """Return whether the number of `gpu` may be that of a card which is too small."""
        unproven = self.snapshot.unproven
        others = (other for other in gpus if other.index in unproven)
        return gpu.index in unproven and any(self.memory.need_bytes(other) > other.free_bytes for other in others)

    def _split(self, evicted: Evicted, gpus: tuple[Gpu, ...], stay: Evicted) -> Plan | Shortage:
        """Plan over all cards together."""
        have = sum(gpu.free_bytes for gpu in gpus)
        least = least_of_split(self.memory, gpus)
        if least > have:  # too big even without margins: skip distributing the layers
            return Shortage(least, have, TOO_BIG)
        placement, options = self.memory.on(gpus), self.options.at(self.options.num_ctx)
        reason = TOO_BIG
        if placement.fits and not (reason := self._obstacle(None, gpus, gpus, stay)):
            return _plan(options, evicted, placement, self.memory)
        need = placement.need_bytes if placement.fits else max(placement.need_bytes, have + 1)
        return Shortage(need, have, reason)

    def _obstacle(self, main_gpu: int | None, group: tuple[Gpu, ...], gpus: tuple[Gpu, ...], stay: Evicted) -> str:
        """Return why the load would not go as planned; "" if nothing is in the way."""
        cards = [gpu.index for gpu in group]
        launch = self.memory.launch(main_gpu)
        if reason := self.books.obstacle(self.facts, launch, cards, gpus, stay, self.rules.settings):
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


def _by_free(gpu: Gpu) -> tuple[int, int]:
    return gpu.free_bytes, gpu.index


def cards_without(evicted: Sequence[Resident], gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Return the cards with the memory of `evicted` freed."""
    if not evicted:
        return gpus
    return tuple(replace(gpu, free_bytes=_free_bytes(gpu, evicted)) for gpu in gpus)


def _free_bytes(gpu: Gpu, evicted: Sequence[Resident]) -> int:
    freed = sum(resident.held_bytes.get(gpu.index, 0) for resident in evicted)
    return min(gpu.total_bytes, gpu.free_bytes + freed)


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
