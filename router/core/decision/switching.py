"""Planning a switch, pure: which residents are evicted and where the model is loaded, so that Ollama has no choice.

Of the sound plans (`placing.py`) the one with the cheapest victims counts (`victims.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from heapq import merge
from itertools import islice
from operator import itemgetter
from types import EllipsisType

from router.core.decision.foreseen import OTHER_CARDS, Books
from router.core.decision.need import MachineRules, need_of
from router.core.decision.placing import Placing, nearer
from router.core.decision.plan import TOO_BIG
from router.core.decision.plan import Plan as Plan
from router.core.decision.plan import Shortage as Shortage
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.victims import Demand, Evicted, cheapest_sets, never_waiting, without
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import max_loaded

Try = tuple[Evicted, "int | EllipsisType | None"]
"""Victims, and the place that was tried without them, as `Placing.without` takes it."""

NO_PLAN = Shortage(0, 0, "no plan")
"""Stands for a shortage whose reason nobody asks for."""

MOST_TRIES = 64  # sets of victims on single cards whose plan is replayed on Ollama's rules
MOST_TOGETHER = 8  # residents of which every set is considered for a split
MOST_SPLITS = 4  # the same over all cards, which takes longer; and as many that leave the oldest


def plan_at(
    facts: ModelFacts,
    options: LoadOptions,
    snapshot: Snapshot,
    rules: MachineRules,
    *,
    may_pin: bool,
    spared: frozenset[str] = frozenset(),
    gone: frozenset[str] = frozenset(),
    books: Books | None = None,
    is_explained: bool = True,
) -> Plan | Shortage:
    """Return the cheapest sound plan to load `facts` with exactly `options`, evicting none of `spared` (weights).

    Nor does what is reserved for other teams go. Older runners of the same weights always do, and those of `gone`.
    `books` are those of the snapshot, if several plans are made on it. Unless it `is_explained`, a shortage may be
    NO_PLAN, which takes less time.
    """
    assert snapshot.gpus
    forced = gone | {facts.weights} if facts.weights else gone
    same = tuple(one for one in snapshot.residents if one.weights in forced)
    may_go = (one for one in snapshot.residents if one.weights not in spared and not one.is_reserved)
    others = tuple(one for one in may_go if one not in same)
    must_go = len(snapshot.residents) - len(same) - max_loaded(len(snapshot.gpus), rules.settings) + 1
    memory = need_of(facts, options, rules)
    books = books or Books.of(snapshot)
    placing = Placing(facts, options, memory, snapshot, rules, books, same, may_pin)
    return _Search(placing, others, max(0, must_go), is_explained).cheapest()


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the cheapest sound plan. `others` may be evicted, `must_go` of them at least.

    1. Nobody but older runners of the same weights is evicted.
    2. One card: of those on the card, every set that frees enough there, the cheapest on any card first.
    3. All cards together: sets cheaper than the best of 2, of all residents.
    4. All that are idle, and all: where Ollama's figures are stale on a card that has no victims of its own.
    """

    placing: Placing
    others: Evicted
    must_go: int
    is_explained: bool

    def cheapest(self) -> Plan | Shortage:
        """Return the plan, or the nearest miss."""
        tries: list[Try] = []
        if not self.must_go:
            found = self.placing.without(())
            if found is not None:
                return found
            if not self.others:
                return self._nearest([((), ...)])
            tries.append(((), ...))
        emptied = self.placing.without(self.others)
        if emptied is None:
            miss = self.placing.miss(self.others)
            if miss.reason == TOO_BIG:
                return miss  # whichever residents go
        cost, plan = self._on_one_card(tries)
        plan = self._split_below(cost, tries) or plan
        idle = never_waiting(self.others)
        is_dear = plan is None or any(one.weights in plan.evict for one in self.others if one not in idle)
        if is_dear and len(idle) >= self.must_go:
            found = self.placing.without(idle)
            if found is not None:
                return found
            tries.append((idle, ...))
        if plan is not None:
            return plan
        if len(self.others) < self.must_go:
            return Shortage(0, 0, "others are in use")
        if emptied is not None:
            return emptied
        return self._nearest([(self.others, ...), *tries])

    def _nearest(self, tries: Sequence[Try]) -> Shortage:
        """Return the nearest miss of what was tried."""
        return reduce(nearer, (self.placing.miss(*one) for one in tries)) if self.is_explained else NO_PLAN

    def _on_one_card(self, tries: list[Try]) -> tuple[int | None, Plan | None]:
        """Apply rule 2: return the plan and its cost, or add what was tried to `tries`."""
        gpus = self.placing.books.cleared(self.placing.same).gpus
        streams = [self._sets_on(gpu, gpus) for gpu in gpus if self.placing.memory.need_bytes(gpu) <= gpu.total_bytes]
        for cost, _, card, evicted in islice(merge(*streams, key=itemgetter(0, 1, 2)), MOST_TRIES):
            found = self.placing.without(evicted, only=card)
            if found is not None:
                return cost, found
            tries.append((evicted, card))
        return None, None

    def _sets_on(self, gpu: Gpu, gpus: Sequence[Gpu]) -> Iterator[tuple[int, int, int, Evicted]]:
        """Yield the sets of victims for `gpu` that make room in fact and in Ollama's eyes.

        With each its cost, and the card's free bytes and number. While a resident stays on every card Ollama believes
        frozen figures; else it looks.
        """
        price = self.placing.books.price
        here = [one for one in self.others if one.held_bytes.get(gpu.index)]
        booked = {name: one.booked_bytes(gpu.index) for name, one in self.placing.books.most.items()}
        stale = self.placing.books.stale(gpu, here, self.placing.memory.least_believed_bytes)
        is_frozen = all(self._is_covered(other, gpu) for other in gpus if other is not gpu)
        forced = tuple(one for one in here if is_frozen and one.weights in stale)
        rest = without(forced, here)
        room = self.placing.memory.need_bytes(gpu) - gpu.free_bytes - sum(one.held_bytes[gpu.index] for one in forced)
        if not is_frozen:
            room = max(room, self.placing.memory.least_believed_bytes + gpu.context_bytes - gpu.free_bytes)
        unbooked = self.placing.memory.least_believed_bytes - gpu.total_bytes
        unbooked += sum(booked[one.weights] for one in without(forced, self._residents()))
        demands = (
            Demand(tuple(one.held_bytes[gpu.index] for one in rest), room),
            Demand(tuple(booked[one.weights] for one in rest), unbooked),
        )
        least = sum(map(price, forced))
        found = (
            (least + cost, self._enough((*forced, *chosen)))
            for cost, chosen in cheapest_sets(rest, demands, price=price)
        )
        for cost, victims in filter(itemgetter(1), found):  # nobody was tried first
            yield cost, gpu.free_bytes, gpu.index, victims
        yield sum(map(price, here)), gpu.free_bytes, gpu.index, self._enough(tuple(here))  # then Ollama looks again

    def _residents(self) -> Evicted:
        return without(self.placing.same, self.placing.snapshot.residents)

    def _is_covered(self, other: Gpu, gpu: Gpu) -> bool:
        """Return whether a resident is on `other` that is not a victim for `gpu`."""
        return any(one.held_bytes.get(other.index) and not one.held_bytes.get(gpu.index) for one in self._residents())

    def _enough(self, victims: Evicted) -> Evicted:
        """Return `victims`, with the cheapest of the others if more must go."""
        if len(victims) >= self.must_go:
            return victims
        more = sorted(without(victims, self.others), key=self.placing.books.price)
        return (*victims, *more[: self.must_go - len(victims)])

    def _split_below(self, cost: int | None, tries: list[Try]) -> Plan | None:
        """Apply rule 3: return the plan of the cheapest set that costs less than `cost` (None = any)."""
        gpus, price = self.placing.books.cleared(self.placing.same).gpus, self.placing.books.price
        cheaper = [one for one in self.others if cost is None or price(one) < cost]
        if len(gpus) == 1 or not cheaper:
            return None
        emptied = self.placing.split_without(tuple(cheaper))
        if not emptied.fits:
            return None
        hopeless: list[tuple[frozenset[str], frozenset[int], Evicted]] = []
        for found_cost, evicted in self._sets_for_split(cheaper, self._demands(cheaper, gpus, emptied.need_bytes)):
            gone, covered = frozenset(one.weights for one in evicted), self._covered_without(evicted)
            # More room makes a single card only more likely, unless Ollama then looks at the cards again.
            alike = (less for smaller, cards, less in hopeless if smaller <= gone and cards == covered)
            if any(self.placing.split_without(less).fits for less in alike):
                continue
            if cost is not None and found_cost >= cost:
                continue
            found = self.placing.without(evicted, only=None)
            if found is not None:
                return found
            tries.append((evicted, None))
            if self.placing.split_obstacle(evicted) == OTHER_CARDS:
                hopeless.append((gone, covered, evicted))
        return None

    def _sets_for_split(self, victims: Sequence[Resident], demands: Sequence[Demand]) -> list[tuple[int, Evicted]]:
        """Return the sets that are tried, cheapest first: the cheapest, and the youngest.

        If the youngest go, Ollama's figures for those that stay are right.
        """
        price = self.placing.books.price
        sets = [one for one in islice(cheapest_sets(victims, demands, MOST_TOGETHER, price), MOST_SPLITS + 1) if one[1]]
        ranks = sorted(range(len(victims)), key=lambda at: -victims[at].order)
        for count in range(1, len(ranks)):
            young = ranks[:count]
            if all(sum(demand.sizes_bytes[at] for at in young) >= demand.least_bytes for demand in demands):
                chosen = tuple(victims[at] for at in young)
                sets.append((sum(map(price, chosen)), chosen))
            if len(sets) > 2 * MOST_SPLITS:
                break
        return sorted((one for one in sets if len(one[1]) >= self.must_go), key=itemgetter(0))

    def _demands(self, victims: Sequence[Resident], gpus: Sequence[Gpu], need_bytes: int) -> list[Demand]:
        """Return what the victims of a split must free in fact, and in Ollama's eyes.

        A split may do with a little less than `need_bytes`, which it takes where all victims are gone.
        """
        booked = {
            one.weights: sum(self.placing.books.most[one.weights].booked_bytes(gpu.index) for gpu in gpus)
            for one in self._residents()
        }
        accounted = sum(gpu.total_bytes for gpu in gpus) - sum(booked.values())
        room = need_bytes - sum(gpu.free_bytes for gpu in gpus)
        return [
            Demand(tuple(sum(one.held_bytes.values()) for one in victims), room),
            Demand(tuple(booked[one.weights] for one in victims), self.placing.memory.least_believed_bytes - accounted),
        ]

    def _covered_without(self, evicted: Evicted) -> frozenset[int]:
        """Return the cards on which a resident stays: while it is all of them, Ollama does not query them."""
        stay = without((*self.placing.same, *evicted), self.placing.snapshot.residents)
        return frozenset(card for one in stay for card, size in one.held_bytes.items() if size)
