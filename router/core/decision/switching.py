"""Planning a switch, pure: which residents are evicted and where the model is loaded, so that Ollama has no choice.

A plan is sound if the model fits by llama.cpp's own arithmetic *and* Ollama certainly loads it where the plan does
(`foreseen.py`). Of the sound plans the one with the cheapest victims counts (`victims.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from heapq import merge
from itertools import islice
from operator import itemgetter
from types import EllipsisType

from router.core.decision.foreseen import OTHER_CARDS, obstacle
from router.core.decision.need import MachineRules, MemoryNeed, need_of
from router.core.decision.snapshot import Snapshot
from router.core.decision.victims import Evicted, cost_of, never_waiting, priced_sets
from router.core.memory.placement import Placement
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import max_loaded

MOST_TRIES = 64  # sets of victims on single cards whose plan is replayed on Ollama's rules
MOST_SPLITS = 16  # the same over all cards, which takes longer


@dataclass(frozen=True, slots=True)
class Plan:
    """One switch: unload `evict` (weights, in this order), then load the model with `options` on `cards`.

    `waits_for` are those of `evict` with requests in flight: the switch starts when they are idle. The needs include
    driver context, margin and safety (a split may use part of a margin: then the need is what the card has). `counted`
    are the options that the bytes stand for, if `options` leave a choice to Ollama. `adopts`: another client's runner
    is taken over unchanged. `expected_bytes` is by how much the probe should see free memory drop, by the formula
    alone.
    """

    options: LoadOptions
    evict: tuple[str, ...]
    waits_for: tuple[str, ...]
    cards: tuple[int, ...]
    need_bytes: int
    have_bytes: int
    need_by_card: tuple[int, ...] = ()
    expected_bytes: int = 0
    cache_bytes: int = 0
    adopts: bool = False
    counted: LoadOptions | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why no plan exists: the least that is needed, the most that is available, both in bytes, and a reason."""

    need_bytes: int
    have_bytes: int
    reason: str


def plan_at(
    facts: ModelFacts,
    options: LoadOptions,
    snapshot: Snapshot,
    rules: MachineRules,
    *,
    may_pin: bool,
    spared: frozenset[str] = frozenset(),
) -> Plan | Shortage:
    """Return the cheapest sound plan to load `facts` with exactly `options`, evicting none of `spared` (weights).

    Older runners of the same weights are always evicted. On a machine with several cards a model on one card is pinned
    with `main_gpu`, if it may be; a split one is not.
    """
    assert snapshot.gpus
    same = tuple(one for one in snapshot.residents if one.weights == facts.weights and facts.weights)
    others = tuple(one for one in snapshot.residents if one not in same and one.weights not in spared)
    must_go = len(snapshot.residents) - len(same) - max_loaded(len(snapshot.gpus), rules.settings) + 1
    memory = need_of(facts, options, rules)
    return _Search(facts, options, memory, snapshot, rules, may_pin, same, others, max(0, must_go)).cheapest()


def _nearer(one: Shortage, other: Shortage) -> Shortage:
    """Return the shortage that misses by less."""
    if other.have_bytes - other.need_bytes > one.have_bytes - one.need_bytes:
        return other
    return one


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the cheapest sound plan. `same` are always evicted, `others` may be, `must_go` of them at least.

    1. Nobody else is evicted.
    2. One card: of those on the card, every set that frees enough there, the cheapest on any card first.
    3. All cards together: sets cheaper than the best of 2, of all residents.
    4. All that are idle, and all: where Ollama's figures are stale on a card that has no victims of its own.
    """

    facts: ModelFacts
    options: LoadOptions
    memory: MemoryNeed
    snapshot: Snapshot
    rules: MachineRules
    may_pin: bool
    same: Evicted
    others: Evicted
    must_go: int

    def cheapest(self) -> Plan | Shortage:
        """Return the plan, or the nearest miss."""
        misses: list[Shortage] = []
        if not self.must_go:
            found = self.without(())
            if isinstance(found, Plan) or not self.others:
                return found
            misses.append(found)
        cost, plan = self._on_one_card(misses)
        plan = self._split_below(cost, misses) or plan
        for last in () if plan else (never_waiting(self.others), self.others):
            found = self.without(last) if len(last) >= self.must_go else Shortage(0, 0, "others are in use")
            if isinstance(found, Plan):
                return found
            misses.append(found)
        return plan or reduce(_nearer, misses)

    def _on_one_card(self, misses: list[Shortage]) -> tuple[int | None, Plan | None]:
        """Apply rule 2: return the plan and its cost, or add the nearest misses to `misses`."""
        gpus = _cards_without(self.same, self.snapshot)
        streams = [self._sets_on(gpu) for gpu in gpus if self.memory.need_bytes(gpu) <= gpu.total_bytes]
        for cost, _, _, card, evicted in islice(merge(*streams, key=itemgetter(0, 1, 2)), MOST_TRIES):
            found = self.without(evicted, only=card)
            if isinstance(found, Plan):
                return cost, found
            misses.append(found)
        return None, None

    def _sets_on(self, gpu: Gpu) -> Iterator[tuple[int, int, int, int, Evicted]]:
        """Yield the sets that make room on `gpu`: cost, free bytes and number of the card (twice), members."""
        here = [one for one in self.others if one.held_bytes.get(gpu.index)]
        for cost, evicted in priced_sets(here, gpu.index, self.memory.need_bytes(gpu) - gpu.free_bytes):
            if len(evicted) < self.must_go:
                more = sorted((one for one in self.others if one not in evicted), key=cost_of)
                added = more[: self.must_go - len(evicted)]
                cost, evicted = cost + sum(map(cost_of, added)), (*evicted, *added)
            if evicted:
                yield cost, gpu.free_bytes, gpu.index, gpu.index, evicted

    def _split_below(self, cost: int | None, misses: list[Shortage]) -> Plan | None:
        """Apply rule 3: return the plan of the cheapest set that costs less than `cost` (None = any)."""
        gpus = _cards_without(self.same, self.snapshot)
        if len(gpus) == 1:
            return None
        least = _least_of_split(self.memory, gpus) - sum(gpu.free_bytes for gpu in gpus)
        cheaper = [one for one in self.others if cost is None or cost_of(one) < cost]
        hopeless: list[frozenset[str]] = []  # more room only makes a single card more likely
        sets = (one for one in priced_sets(cheaper, None, least) if len(one[1]) >= max(1, self.must_go))
        for price, evicted in islice(sets, MOST_SPLITS):
            if cost is not None and price >= cost:
                return None
            gone = frozenset(one.weights for one in evicted)
            if any(smaller <= gone for smaller in hopeless):
                continue
            found = self.without(evicted, only=None)
            if isinstance(found, Plan):
                return found
            misses.append(found)
            if found.reason == OTHER_CARDS:
                hopeless.append(gone)
        return None

    def without(self, others: Evicted, only: int | EllipsisType | None = ...) -> Plan | Shortage:
        """Plan on the cards as they are after `same` and `others` were unloaded.

        Single cards come first, from the tightest to the roomiest, so that a big card stays free, then all together;
        with `only` this one card alone (None = only all together).
        """
        evicted = (*self.same, *others)
        gpus = _cards_without(evicted, self.snapshot)
        stay = tuple(r for r in self.snapshot.residents if r not in evicted) if evicted else self.snapshot.residents
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
        return reduce(_nearer, misses)

    def _single(self, gpu: Gpu, evicted: Evicted, gpus: tuple[Gpu, ...], stay: Evicted) -> Plan | Shortage:
        """Plan on `gpu` alone."""
        need = self.memory.need_bytes(gpu)
        if need > gpu.free_bytes:
            return Shortage(need, gpu.free_bytes, "too big")
        is_pinned = self.may_pin and len(gpus) > 1
        options = self.options.at(self.options.num_ctx, gpu.index) if is_pinned else self.options
        if reason := self._obstacle(options, (gpu,), gpus, stay):
            return Shortage(need, gpu.free_bytes, reason)
        return _plan(options, evicted, self.memory.on((gpu,)), self.memory)

    def _split(self, evicted: Evicted, gpus: tuple[Gpu, ...], stay: Evicted) -> Plan | Shortage:
        """Plan over all cards together."""
        have = sum(gpu.free_bytes for gpu in gpus)
        least = _least_of_split(self.memory, gpus)
        if least > have:  # too big even without margins: skip distributing the layers
            return Shortage(least, have, "too big")
        placement, options = self.memory.on(gpus), self.options.at(self.options.num_ctx)
        reason = "too big"
        if placement.fits and not (reason := self._obstacle(options, gpus, gpus, stay)):
            return _plan(options, evicted, placement, self.memory)
        need = placement.need_bytes if placement.fits else max(placement.need_bytes, have + 1)
        return Shortage(need, have, reason)

    def _obstacle(self, options: LoadOptions, group: tuple[Gpu, ...], gpus: tuple[Gpu, ...], stay: Evicted) -> str:
        """Return why the load would not go as planned; "" if nothing is in the way."""
        cards = [gpu.index for gpu in group]
        if reason := obstacle(self.facts, options, cards, gpus, stay, self.rules.settings):
            return reason
        free = min(gpu.free_bytes for gpu in group)
        if self.rules.learned.banned(self.facts.weights, self.memory.asked, free, self.rules.now_s):
            return "it spilled before at this free level"
        return ""


def _least_of_split(memory: MemoryNeed, gpus: Sequence[Gpu]) -> int:
    """Return what all cards together must at least have, without margins."""
    return memory.footprint.need_bytes + sum(gpu.context_bytes for gpu in gpus)


def _by_free(gpu: Gpu) -> tuple[int, int]:
    return gpu.free_bytes, gpu.index


def _cards_without(evicted: Evicted, snapshot: Snapshot) -> tuple[Gpu, ...]:
    """Return the cards with the memory of `evicted` freed."""
    assert snapshot.gpus
    if not evicted:
        return snapshot.gpus
    return tuple(replace(gpu, free_bytes=_free_bytes(gpu, evicted)) for gpu in snapshot.gpus)


def _free_bytes(gpu: Gpu, evicted: Evicted) -> int:
    freed = sum(resident.held_bytes.get(gpu.index, 0) for resident in evicted)
    return min(gpu.total_bytes, gpu.free_bytes + freed)


def _plan(options: LoadOptions, evicted: Evicted, placement: Placement, memory: MemoryNeed) -> Plan:
    youngest_first = sorted(evicted, key=lambda resident: -resident.order)
    return Plan(
        options=options,
        evict=tuple(resident.weights for resident in youngest_first),
        waits_for=tuple(resident.weights for resident in youngest_first if resident.in_flight),
        cards=tuple(device.index for device in placement.devices),
        need_bytes=placement.need_bytes,
        have_bytes=sum(device.have_bytes for device in placement.devices),
        need_by_card=tuple(min(device.need_bytes, device.have_bytes) for device in placement.devices),
        expected_bytes=placement.expected_bytes,
        cache_bytes=memory.cache_bytes,
    )
