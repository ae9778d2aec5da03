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
               its switch costs if that is longer, but not so long that it is refused before. A part of what the
               switches of others cost counts too. So requests for a loaded model are served on while others wait, and
               only a share of the time is spent on switches, however many models are waited for. An impatient group
               closes the residents in its way: they take no new requests, finish those in flight, and go. It keeps to
               those that were in its way first (`claim`): of two busy ones the plan names now this one, now that one,
               and neither would become idle.
 6. ORDER      Impatient groups by how many times their bound they have waited, as a short bound is that of a cheap
               switch; from twice on by age. Then the others, most tickets per second of the switch first.
 7. START      The first group in order whose plan waits for no busy resident, and evicts none that a request was
               just let in to. If others wait for the same model with larger contexts, it is loaded with the largest
               that may be loaded now: that serves them all. In rule 6 they count together.
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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.core.decision.groups import LEAST_COST_S, TWICE, Group, Patience, Serving, Waiting, groups_of, in_the_way
from router.core.decision.switching import Plan
from router.core.decision.verdict import Decision, VerdictKind

LOOK_AGAIN_S = 0.5
"""Shortest pause before the rules are applied again while a group is impatient."""


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
    groups = groups_of(waiting)  # rule 1
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
    others.sort(key=lambda group: (group.level_s, -group.served / max(LEAST_COST_S, group.cost_s)))  # rule 6
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


def _apart(impatient: Sequence[Group]) -> list[Group]:
    """Return the impatient groups of which none is in the way of one before it (rule 8)."""
    leading: list[Group] = []
    for group in impatient:
        if not any(_meet(group.plan, other.plan) for other in leading):
            leading.append(group)
    return leading


def _meet(one: Plan | None, other: Plan | None) -> bool:
    """Return whether two plans use a card or a resident in common; without known cards, they may."""
    if one is None or other is None or not one.cards or not other.cards:
        return True
    return not (set(one.cards).isdisjoint(other.cards) and in_the_way(one).isdisjoint(in_the_way(other)))


def _let_in(groups: Sequence[Group], closed: frozenset[str], *, may_refuse: bool) -> tuple[int, ...]:
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


def _is_impatient(group: Group, residents: Mapping[str, Serving], now_s: float, patience: Patience) -> bool:
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
    ordered: Sequence[Group], leading: Sequence[Group], in_use: frozenset[str], now_s: float, patience: Patience
) -> Decision | None:
    """Apply rules 7 to 9 and return the decision of the group to load for."""
    blocked: list[Group] = []

    def may_start(plan: Plan | None) -> bool:
        if plan is None or plan.waits_for or in_use.intersection(plan.evict):
            return False
        return all(_may_go_beside(plan, other, now_s, patience) for other in blocked if _meet(plan, other.plan))

    for group in ordered:
        if may_start(group.plan):
            wider = (other for other in ordered if group.is_served_by(other) and may_start(other.plan))
            return max((group, *wider), key=lambda one: one.num_ctx).decision
        if group in leading:
            blocked.append(group)
    return None


def _may_go_beside(plan: Plan, waits: Group, now_s: float, patience: Patience) -> bool:
    """Apply rule 9: `waits` is an impatient group that needs the same memory later."""
    return bool(plan.cards) and not plan.evict and now_s - waits.oldest.since_s < TWICE * waits.bound_s(patience)
