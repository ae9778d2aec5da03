"""The queue's rules on one backend: who is let in now, what is loaded next, what must close for it. Pure.

`turns` applies these rules, in this order:

 1. GROUPS     Tickets that wait for the same weights at the same context form a group; one load serves all of them.
 2. DUE        A ticket that waited while its model was loaded, or for a slot of it before rule 5 closed it, is let in
               even then: else two models that load for longer than the age bound would evict each other for ever.
 3. RESIDENT   A ticket whose model is resident is let in, unless rule 5 has closed it. Who is let in enters as soon as
               the runner has a slot for it, the oldest first; until then it counts as a request to that resident.
 4. REFUSED    A ticket that nothing can serve is let in, to be refused or passed through. Not during a switch: memory
               is being freed then, so what does not fit now may fit in a moment.
 5. IMPATIENT  A group is impatient if its oldest ticket has waited for its bound: the age bound, or a multiple of what
               its switch costs if that is longer, but not so long that it is refused before. So requests for a loaded
               model are served on while others wait, and only a share of the time is spent on switches. An impatient
               group closes the residents in its way: they take no new requests, finish those in flight, and go. It
               keeps to those that were in its way first (`claim`): of two busy ones the plan names now this one, now
               that one, and neither would become idle.
 6. ORDER      Impatient groups by how many times their bound they have waited, as a short bound is that of a cheap
               switch; from twice on by age. Then the others, most tickets per second of the switch first.
 7. START      The first group in order whose plan waits for no busy resident, and evicts none that a request was
               just let in to.
 8. APART      An impatient group that cannot start keeps its place: no group after it closes or starts anything on its
               cards, or evicts what it waits for. On other cards they do.
 9. BESIDE     Except that a load which evicts nothing may use memory that an impatient group cannot use yet, until
               that group has waited for twice its bound.
10. LOOK AGAIN If a group waits and none starts: when the next ticket turns impatient.

Where teams compete (`core/teams/fairness.py`), a ticket is also kept out of a resident if its team is too far ahead of
one that waits to replace it (`is_barred`), only the team that has had least turns impatient, and the one that has had
least goes first. A group of which a limit of each team forbids the load (`is_held`) closes and starts nothing.

During a switch only rules 1 to 4 apply, with what the switch has closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.core.decision.switching import Plan
from router.core.decision.verdict import Decision, VerdictKind

LOOK_AGAIN_S = 0.5
"""Shortest pause before the rules are applied again while a group is impatient."""

LEAST_COST_S = 0.1
"""A switch counts as costing at least this much."""

TWICE = 2.0
"""A group that has waited for so many times its bound is overtaken by none (rule 6), and none loads beside (rule 9)."""


class Serving(Protocol):
    """What the rules need of a resident: the number of its load, and how many requests it has served since."""

    @property
    def order(self) -> int: ...

    @property
    def served(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue, and the decision that it would get now; or `count` of them with equal decisions.

    `number` identifies it, `since_s` is when the oldest came. `served_before` is what each resident (by its `order`)
    had served by then. `is_due`: its model was loaded, or open to it, while it waited. Where teams compete, `level_s`
    is what its team has had, and `is_barred` says that by this its team may not use its resident now.
    `is_held`: a limit of its team forbids the load that it waits for. `claim` are the residents that were in the way of
    its load first; empty = those of its plan.
    """

    number: int
    since_s: float
    decision: Decision
    served_before: Mapping[int, int] = field(default_factory=dict)
    is_due: bool = False
    count: int = 1
    level_s: float = 0.0
    is_barred: bool = False
    is_held: bool = False
    claim: frozenset[str] = frozenset()

    @property
    def weights(self) -> str:
        """The weights that it waits for."""
        return wanted_weights(self.decision)


@dataclass(frozen=True, slots=True)
class Patience:
    """When a group turns impatient (rule 5).

    After `age_bound_s` seconds of waiting, or `cost_factor` times what its switch costs if that is longer, but at most
    `most_s`; or after `affinity_count` requests have overtaken it (None: any number may).
    """

    age_bound_s: float
    cost_factor: float = 3.0
    affinity_count: int | None = None
    most_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Turns:
    """What the rules demand now.

    `let_in` are numbers of tickets, `closed` the weights of residents that take no new requests. `start` is the
    decision of the group to load for. `look_again_s` is in how many seconds to apply the rules again (None = when
    something changes).
    """

    let_in: tuple[int, ...]
    closed: frozenset[str]
    start: Decision | None = None
    look_again_s: float | None = None


@dataclass(slots=True, eq=False)  # by identity: comparing decisions takes longer
class _Group:
    """Tickets that one load serves."""

    decision: Decision
    tickets: list[Waiting] = field(default_factory=list)

    @property
    def plan(self) -> Plan | None:
        """The switch that would serve the group; None if none is needed, exists, or may be made now."""
        is_held = all(ticket.is_held for ticket in self.tickets)
        return self.decision.chosen.plan if self.decision.chosen is not None and not is_held else None

    @property
    def closes(self) -> frozenset[str]:
        """The residents that it closes when it is impatient."""
        return frozenset[str]().union(*(ticket.claim for ticket in self.tickets)) or in_the_way(self.plan)

    @property
    def count(self) -> int:
        return sum(ticket.count for ticket in self.tickets)

    @property
    def level_s(self) -> float:
        """What the team has had that has had least of those that wait for it."""
        return min(ticket.level_s for ticket in self.tickets)

    @property
    def oldest(self) -> Waiting:
        return min(self.tickets, key=lambda ticket: ticket.since_s)

    @property
    def cost_s(self) -> float:
        """What the switch costs, in seconds."""
        return self.decision.chosen.cost_s if self.decision.chosen is not None else 0.0

    def bound_s(self, patience: Patience) -> float:
        """Return after how many seconds it is impatient."""
        return max(patience.age_bound_s, min(patience.most_s, patience.cost_factor * self.cost_s))

    def place(self, now_s: float, patience: Patience) -> tuple[bool, float]:
        """Return its place among the impatient groups (rule 6): the lowest goes first."""
        since_s = self.oldest.since_s
        times = (now_s - since_s) / max(LEAST_COST_S, self.bound_s(patience))
        return (False, since_s) if times >= TWICE else (True, -times)


def turns(
    waiting: Sequence[Waiting],
    residents: Mapping[str, Serving],
    now_s: float,
    patience: Patience,
    *,
    entering: frozenset[str] = frozenset(),
    closed_by_switch: frozenset[str] | None = None,
    giving_way: frozenset[str] = frozenset(),
) -> Turns:
    """Apply the rules of this module.

    `entering` are the weights that requests let in earlier are about to use; `closed_by_switch` is None if no switch
    runs. `giving_way` are residents that are closed in favour of somebody who does not wait here.
    """
    groups = _groups(waiting)  # rule 1
    if closed_by_switch is not None:
        return Turns(_let_in(groups, closed_by_switch | giving_way, may_refuse=False), closed_by_switch)
    least_s = min((ticket.level_s for ticket in waiting), default=0.0)
    impatient = sorted(
        (
            group
            for group in groups
            if group.plan is not None and group.level_s <= least_s and _is_impatient(group, residents, now_s, patience)
        ),
        key=lambda group: (group.level_s, group.place(now_s, patience)),  # rule 6
    )
    others = [group for group in groups if group.plan is not None and group not in impatient]
    others.sort(key=lambda group: (group.level_s, -group.count / max(LEAST_COST_S, group.cost_s)))  # rule 6
    leading = _apart(impatient)
    closed = frozenset[str]().union(*(group.closes for group in leading))  # rule 5
    let_in = _let_in(groups, closed | giving_way, may_refuse=True)
    in_use = entering | _weights_of(waiting, let_in)
    start = _start((*impatient, *others), leading, in_use, now_s, patience)
    look_again_s = None
    if (impatient or others) and start is None:  # rule 10
        next_s = min(group.oldest.since_s + group.bound_s(patience) for group in (*impatient, *others))
        look_again_s = max(LOOK_AGAIN_S, next_s - now_s)
    return Turns(let_in, closed, start, look_again_s)


def in_the_way(plan: Plan | None) -> frozenset[str]:
    """Return the residents that a switch needs idle: those to evict, and those that Ollama may evict for it."""
    return frozenset((*plan.evict, *plan.waits_for)) if plan is not None else frozenset()


def _apart(impatient: Sequence[_Group]) -> list[_Group]:
    """Return the impatient groups of which none is in the way of one before it (rule 8)."""
    leading: list[_Group] = []
    for group in impatient:
        if not any(_meet(group.plan, other.plan) for other in leading):
            leading.append(group)
    return leading


def _meet(one: Plan | None, other: Plan | None) -> bool:
    """Return whether two plans use a card or a resident in common; without known cards, they may."""
    if one is None or other is None or not one.cards or not other.cards:
        return True
    return not (set(one.cards).isdisjoint(other.cards) and in_the_way(one).isdisjoint(in_the_way(other)))


def wanted_weights(decision: Decision) -> str:
    """Return the weights that a decision waits for; "" if it waits for nothing."""
    chosen = decision.chosen
    if chosen is None:
        return ""
    if chosen.resident is not None:
        return chosen.resident.weights
    return chosen.facts.weights if chosen.facts is not None else ""


def _groups(waiting: Sequence[Waiting]) -> list[_Group]:
    groups: dict[tuple[str, int], _Group] = {}
    for ticket in waiting:
        chosen = ticket.decision.chosen
        key = (ticket.weights, chosen.num_ctx if chosen is not None else 0)
        groups.setdefault(key, _Group(ticket.decision)).tickets.append(ticket)
    return list(groups.values())


def _let_in(groups: Sequence[_Group], closed: frozenset[str], *, may_refuse: bool) -> tuple[int, ...]:
    """Apply rules 2 to 4 and return the numbers of the tickets to let in."""
    numbers: list[int] = []
    for group in groups:
        chosen = group.decision.chosen
        if (chosen is None and may_refuse) or (chosen is not None and chosen.kind is VerdictKind.PLACED):
            numbers += (ticket.number for ticket in group.tickets)
        elif chosen is not None and chosen.kind is VerdictKind.RESIDENT:
            is_open = chosen.resident is None or chosen.resident.weights not in closed
            numbers += (one.number for one in group.tickets if one.is_due or (is_open and not one.is_barred))
    return tuple(numbers)


def _is_impatient(group: _Group, residents: Mapping[str, Serving], now_s: float, patience: Patience) -> bool:
    oldest, most = group.oldest, patience.affinity_count
    is_old = now_s - oldest.since_s >= group.bound_s(patience)
    return is_old or (most is not None and _overtaken(oldest, group.plan, residents) >= most)


def _overtaken(ticket: Waiting, plan: Plan | None, residents: Mapping[str, Serving]) -> int:
    """Count the requests that the residents which `plan` would evict have served since the ticket came."""
    in_the_way = [residents[weights] for weights in plan.evict if weights in residents] if plan is not None else []
    return sum(resident.served - ticket.served_before.get(resident.order, 0) for resident in in_the_way)


def _weights_of(waiting: Sequence[Waiting], let_in: tuple[int, ...]) -> frozenset[str]:
    """Return the weights that the requests let in are about to use: they count as in flight."""
    numbers = set(let_in)
    return frozenset(ticket.weights for ticket in waiting if ticket.number in numbers)


def _start(
    ordered: Sequence[_Group], leading: Sequence[_Group], in_use: frozenset[str], now_s: float, patience: Patience
) -> Decision | None:
    """Apply rules 7 to 9 and return the decision of the group to load for."""
    blocked: list[_Group] = []
    for group in ordered:
        plan = group.plan
        assert plan is not None  # only those that wait for a load are ordered
        is_ready = not plan.waits_for and not in_use.intersection(plan.evict)
        before = [other for other in blocked if _meet(plan, other.plan)]
        if is_ready and all(_may_go_beside(plan, other, now_s, patience) for other in before):
            return group.decision
        if group in leading:
            blocked.append(group)
    return None


def _may_go_beside(plan: Plan, waits: _Group, now_s: float, patience: Patience) -> bool:
    """Apply rule 9: `waits` is an impatient group that needs the same memory later."""
    return bool(plan.cards) and not plan.evict and now_s - waits.oldest.since_s < TWICE * waits.bound_s(patience)
