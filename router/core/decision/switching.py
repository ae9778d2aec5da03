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

from router.core.decision.evictable import Evictable
from router.core.decision.foreseen import OTHER_CARDS, Books, Cleared
from router.core.decision.need import MachineRules, need_of
from router.core.decision.placing import Placing, nearer
from router.core.decision.plan import Plan as Plan
from router.core.decision.plan import Shortage as Shortage
from router.core.decision.snapshot import Snapshot
from router.core.decision.victims import Evicted
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import max_loaded

Try = tuple[Evicted, "int | EllipsisType | None"]
"""Victims, and the place that was tried without them, as `Placing.miss` takes it."""

NO_PLAN = Shortage(0, 0, "no plan")
"""Stands for a shortage whose reason nobody asks for."""

MOST_TRIES = 64  # sets of victims on single cards whose plan is replayed on Ollama's rules


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
    books = books or Books.of(snapshot)
    who = _who(facts, books, spared, gone)
    must_go = len(who.staying) - max_loaded(len(snapshot.gpus), rules.settings) + 1
    placing = Placing(facts, options, need_of(facts, options, rules), rules, books, who.same, may_pin)
    found = _Search(placing, who, max(0, must_go), is_explained).cheapest()
    if isinstance(found, Plan) or not placing.would_stray:
        return found
    placing.let_stray()  # rather than refuse what fits
    return _Search(placing, who, max(0, must_go), is_explained).cheapest()


def is_out_of_question(
    facts: ModelFacts,
    options: LoadOptions,
    rules: MachineRules,
    books: Books,
    *,
    may_pin: bool,
    spared: frozenset[str],
) -> bool:
    """Return whether `plan_at` finds no plan with `options` or a larger context; False = it has to be asked."""
    who = _who(facts, books, spared, frozenset())
    placing = Placing(facts, options, need_of(facts, options, rules), rules, books, who.same, may_pin)
    return placing.is_out_of_question(who.others)


def _who(facts: ModelFacts, books: Books, spared: frozenset[str], gone: frozenset[str]) -> Evictable:
    return books.evictable(gone | {facts.weights} if facts.weights else gone, spared)


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the cheapest sound plan. Of those in `who` that may be evicted `must_go` go at least.

    1. Nobody but older runners of the same weights is evicted.
    2. One card: of those on the card, every set that frees enough there, the cheapest on any card first.
    3. All cards together: sets cheaper than the best of 2, of all residents.
    4. All that are idle, and all: where Ollama's figures are stale on a card that has no victims of its own.
    """

    placing: Placing
    who: Evictable
    must_go: int
    is_explained: bool

    def cheapest(self) -> Plan | Shortage:
        """Return the plan, or the nearest miss."""
        tries: list[Try] = []
        others, idle = self.who.others, self.who.idle
        if not self.must_go:
            found = self.placing.without(())
            if found is not None:
                return found
            tries.append(((), ...))
            if not others:
                return self._nearest(tries)
        if self.placing.is_too_big(others):  # whichever residents go
            return self._nearest([(others, ...)])
        cost, plan = self._on_one_card(tries)
        plan = self._split_below(cost, tries) or plan
        if (plan is None or not self.who.dear.isdisjoint(plan.evict)) and len(idle) >= self.must_go:
            found = self.placing.without(idle)
            if found is not None:
                return found
            tries.append((idle, ...))
        if plan is not None:
            return plan
        if len(others) < self.must_go:
            return Shortage(0, 0, "others are in use")
        return self.placing.without(others) or self._nearest([(others, ...), *tries])

    def _nearest(self, tries: Sequence[Try]) -> Shortage:
        """Return the nearest miss of what was tried."""
        return reduce(nearer, (self.placing.miss(*one) for one in tries)) if self.is_explained else NO_PLAN

    def _on_one_card(self, tries: list[Try]) -> tuple[int | None, Plan | None]:
        """Apply rule 2: return the plan and its cost, or add what was tried to `tries`."""
        needs = self.placing.needs
        streams = [self._sets_on(at, gpu) for at, gpu in enumerate(self.who.gpus) if needs[at] <= gpu.total_bytes]
        sets = streams[0] if len(streams) == 1 else merge(*streams, key=itemgetter(0, 1, 2))
        for cost, _, at, evicted in islice(sets, MOST_TRIES):
            found = self.placing.on_card(at, evicted, self.placing.cleared(evicted))
            if found is not None:
                return cost, found
            tries.append((evicted, at))
        return None, None

    def _sets_on(self, at: int, gpu: Gpu) -> Iterator[tuple[int, int, int, Evicted]]:
        """Yield the sets of victims for this card alone, each with its cost, and the card's free bytes and place."""
        memory = self.placing.memory
        for cost, victims in self.who.on_card(gpu).sets(self.placing.needs[at], memory.least_believed_bytes):
            if enough := self.who.enough(victims, self.must_go):  # nobody was tried first
                yield cost, gpu.free_bytes, at, enough

    def _split_below(self, cost: int | None, tries: list[Try]) -> Plan | None:
        """Apply rule 3: return the plan of the cheapest set that costs less than `cost` (None = any)."""
        placing = self.placing
        if len(self.who.gpus) == 1:
            return None
        together = self.who.cheaper(cost)
        if not together.members:
            return None
        emptied = placing.split(placing.cleared(together.members))
        if not emptied.fits:
            return None
        hopeless: list[Cleared] = []
        # A split may do with a little less than `need_bytes`, which it takes where all victims are gone.
        for found_cost, evicted in together.sets(emptied.need_bytes, placing.memory.least_believed_bytes):
            if cost is not None and found_cost >= cost:
                break
            if len(evicted) < self.must_go:
                continue
            cleared = placing.cleared(evicted)
            if any(placing.split(less).fits for less in hopeless if _is_more(cleared, less)):
                continue
            if placing.is_sound_split(cleared):
                return placing.without(evicted)  # if one card alone can hold it then, that is better
            tries.append((evicted, None))
            if placing.split_obstacle(cleared) == OTHER_CARDS:
                hopeless.append(cleared)
        return None


def _is_more(cleared: Cleared, less: Cleared) -> bool:
    """Return whether `cleared` is `less` with more room, while Ollama believes the same figures.

    Where Ollama would choose a single card then, it does so all the more, unless it now looks at the cards again.
    """
    return not less.gone & ~cleared.gone and cleared.covered == less.covered
