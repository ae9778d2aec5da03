"""A card, models and requests in virtual time, served by the rules of the line alone: how long each request waits.

The smallest machine on which the rules can be wrong: a load evicts the idle residents that have been there longest, an
answer cannot be cut off, and one switch runs at a time.
"""

import heapq
import itertools
from dataclasses import dataclass, field

from router.core.decision.groups import Patience, Waiting
from router.core.decision.turns import turns
from tests.core.decision.queue_states import Loaded, loads, uses


@dataclass
class Model:
    """What a load takes in seconds and GiB; `facts` stands for it in decisions."""

    facts: object
    size_gib: int
    load_s: float


@dataclass
class Resident:
    model: Model
    order: int
    served: int = 0
    in_flight: int = 0


@dataclass
class LineMachine:
    """Runs `requests`, (time, model, seconds of the answer), on a card of `card_gib`.

    `waits` are (model, seconds); `served` are (time of arrival, seconds of waiting, seconds of the answer). A resident
    answers `slots` requests at once, the oldest first.
    """

    patience: Patience
    card_gib: int
    slots: int = 1 << 30
    now_s: float = 0.0
    residents: dict = field(default_factory=dict)  # weights → Resident
    waiting: dict = field(default_factory=dict)  # number → (since, model, seconds, due)
    waits: list = field(default_factory=list)
    served: list = field(default_factory=list)
    loads: int = 0

    def run(self, requests):
        self._numbers, self._events, self._switch, self._looks_at_s = itertools.count(), [], None, 0.0
        for at_s, model, answer_s in requests:
            self._at(at_s, self._arrive, model, answer_s)
        while self._events:
            self.now_s, _, action, args = heapq.heappop(self._events)
            action(*args)
            self._pump()
        assert not self.waiting
        return self.waits

    def _at(self, at_s, action, *args):
        heapq.heappush(self._events, (at_s, next(self._numbers), action, args))

    def _arrive(self, model, answer_s):
        self.waiting[next(self._numbers)] = [self.now_s, model, answer_s, False]

    def _leave(self, resident):
        resident.in_flight -= 1

    def _loaded(self, model):
        self.loads += 1
        self.residents[model.facts.weights] = Resident(model, self.loads)
        self._switch = None
        for ticket in self.waiting.values():
            ticket[3] = ticket[3] or ticket[1] is model

    def _decide(self, model):
        weights = model.facts.weights
        if weights in self.residents:
            return uses(model.facts)
        free = self.card_gib - sum(one.model.size_gib for one in self.residents.values())
        evicts = []
        for resident in sorted(self.residents.values(), key=lambda one: (one.in_flight > 0, one.order)):
            if free >= model.size_gib:
                break
            evicts.append(resident)
            free += resident.model.size_gib
        cost_s = model.load_s + sum(one.model.load_s for one in evicts)
        busy = [one.model.facts.weights for one in evicts if one.in_flight]
        return loads(model.facts, evicts=[one.model.facts.weights for one in evicts], waits_for=busy, cost_s=cost_s)

    def _pump(self):
        decisions = {ticket[1].facts.weights: self._decide(ticket[1]) for ticket in self.waiting.values()}
        tickets = [
            Waiting(number, since_s, decisions[model.facts.weights], is_due=is_due)
            for number, (since_s, model, _, is_due) in self.waiting.items()
        ]
        residents = {weights: Loaded(one.order, one.served) for weights, one in self.residents.items()}
        found = turns(tickets, residents, self.now_s, self.patience, closed_by_switch=self._switch)
        for number in sorted(found.let_in):
            self._enter(number, found.closed)
        if found.start is not None:
            self._begin(found.start.chosen)
        elif found.look_again_s is not None and self.waiting:
            at_s = self.now_s + found.look_again_s
            if not self.now_s < self._looks_at_s <= at_s:  # else it looks by then in any case
                self._looks_at_s = at_s
                self._at(at_s, lambda: None)

    def _enter(self, number, closed):
        since_s, model, answer_s, _ = ticket = self.waiting[number]
        resident = self.residents[model.facts.weights]
        if resident.in_flight >= self.slots:
            ticket[3] = ticket[3] or model.facts.weights not in closed  # it was open to it
            return
        del self.waiting[number]
        resident.in_flight += 1
        resident.served += 1
        self.waits.append((model, self.now_s - since_s))
        self.served.append((since_s, self.now_s - since_s, answer_s))
        self._at(self.now_s + answer_s, self._leave, resident)

    def _begin(self, chosen):
        for weights in chosen.plan.evict:
            assert self.residents.pop(weights).in_flight == 0
        model = next(ticket[1] for ticket in self.waiting.values() if ticket[1].facts is chosen.facts)
        self._switch = frozenset({*chosen.plan.evict, chosen.facts.weights})
        self._at(self.now_s + model.load_s, self._loaded, model)
