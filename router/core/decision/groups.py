"""Who waits in line, in groups that one load serves, and how long a group waits until it is impatient. Pure.

What follows from that are the rules of `turns.py`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from router.core.decision.switching import Plan
from router.core.decision.verdict import Decision

LEAST_COST_S = 0.1
"""A switch counts as costing at least this much."""

OTHERS_SHARE = 1 / 3
"""How much of the switches of others counts for the bound of a group: they take their time before it or after it, so if
each group counted its own alone, several together would spend most of the time on switches."""

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

    After `age_bound_s` seconds of waiting, or `cost_factor` times what its switch costs if that is longer, where the
    switches that others wait for on the same cards count a third, but at most `most_s`; or after `affinity_count`
    requests have overtaken it (None: any number may).
    """

    age_bound_s: float
    cost_factor: float = 3.0
    affinity_count: int | None = None
    most_s: float = math.inf


@dataclass(slots=True, eq=False)  # by identity: comparing decisions takes longer
class Group:
    """Tickets that one load serves. `others_s` is what the switches cost that others wait for on the same cards.

    `guests` are how many more it serves that wait for the same model with smaller contexts.
    """

    decision: Decision
    tickets: list[Waiting] = field(default_factory=list)
    others_s: float = 0.0
    guests: int = 0

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
    def served(self) -> int:
        """How many its load serves."""
        return self.count + self.guests

    @property
    def num_ctx(self) -> int:
        """The context of its load."""
        return self.decision.chosen.num_ctx if self.decision.chosen is not None else 0

    @property
    def load(self) -> Hashable | None:
        """What is loaded, and where, whatever the context; None if nothing is."""
        plan = self.plan
        return (
            (self.oldest.weights, plan.cards, plan.options.at(0, plan.options.main_gpu)) if plan is not None else None
        )

    def is_served_by(self, other: Group) -> bool:
        """Return whether the load of `other` serves these too: the same model in the same place, with more context."""
        return other.num_ctx > self.num_ctx and self.load is not None and self.load == other.load

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
        cost_s = self.cost_s + OTHERS_SHARE * self.others_s
        return max(patience.age_bound_s, min(patience.most_s, patience.cost_factor * cost_s))

    def place(self, now_s: float, patience: Patience) -> tuple[bool, float]:
        """Return its place among the impatient groups (rule 6): the lowest goes first."""
        since_s = self.oldest.since_s
        times = (now_s - since_s) / max(LEAST_COST_S, self.bound_s(patience))
        return (False, since_s) if times >= TWICE else (True, -times)


def in_the_way(plan: Plan | None) -> frozenset[str]:
    """Return the residents that a switch needs idle: those to evict, and those that Ollama may evict for it."""
    return frozenset((*plan.evict, *plan.waits_for)) if plan is not None else frozenset()


def wanted_weights(decision: Decision) -> str:
    """Return the weights that a decision waits for; "" if it waits for nothing."""
    chosen = decision.chosen
    if chosen is None:
        return ""
    if chosen.resident is not None:
        return chosen.resident.weights
    return chosen.facts.weights if chosen.facts is not None else ""


def groups_of(waiting: Sequence[Waiting]) -> list[Group]:
    """Return the groups of those who wait."""
    groups: dict[tuple[str, int], Group] = {}
    for ticket in waiting:
        chosen = ticket.decision.chosen
        key = (ticket.weights, chosen.num_ctx if chosen is not None else 0)
        groups.setdefault(key, Group(ticket.decision)).tickets.append(ticket)
    found = list(groups.values())
    loading = [group for group in found if group.plan is not None]
    _count_others(loading)
    _count_guests(loading)
    return found


def _count_guests(groups: Sequence[Group]) -> None:
    """Set how many each load serves beside its own; hundreds may wait, so each group is looked at once."""
    smaller: dict[Hashable, int] = {}
    for group in sorted(groups, key=lambda one: one.num_ctx):
        group.guests = smaller.get(group.load, 0)
        smaller[group.load] = group.guests + group.count


def _count_others(groups: Sequence[Group]) -> None:
    """Set what the switches of the others cost, card by card; those of which no card is known may use any."""
    by_card: dict[int, float] = {}
    anywhere_s = 0.0
    for group in groups:
        cards = group.plan.cards if group.plan is not None else ()
        anywhere_s += group.cost_s if not cards else 0.0
        for card in cards:
            by_card[card] = by_card.get(card, 0.0) + group.cost_s
    for group in groups:
        cards = group.plan.cards if group.plan is not None else ()
        on_cards_s = max([by_card[card] for card in cards or by_card], default=0.0)
        group.others_s = max(0.0, on_cards_s + anywhere_s - group.cost_s)
