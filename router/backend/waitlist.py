"""Who waits in front of one backend.

All counts are kept, so that nothing here takes longer the more requests wait, save for who joins or leaves out of turn.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterator, Mapping
from operator import attrgetter

from router.backend.tickets import GoOn, Group, Ticket
from router.core.decision.verdict import Decision
from router.core.teams.payer import Payer, Started
from router.errors import RouterError

_PLACE = attrgetter("place")


class Waitlist:
    """All tickets of one line. `wanted` counts them by the weights that they wait for, or were just let in to;
    `by_team` by team, and `entering` those of them that were let in by the weights that they are about to enter."""

    def __init__(self) -> None:
        self.wanted: dict[str, int] = {}
        self.by_team: dict[str, int] = {}
        self.entering: dict[str, int] = {}
        self.depth = 0
        self._groups: dict[Hashable, Group] = {}
        self._numbers = itertools.count()
        self.next_number = 0

    def __iter__(self) -> Iterator[Group]:
        """Iterate over the groups in which somebody waits."""
        return iter([group for group in self._groups.values() if group.tickets])

    def join(
        self,
        key: Hashable,
        decide: Callable[[], Decision],
        since_s: float,
        turn: asyncio.Future[str] | None,
        come: Callable[[Ticket], None],
        served_before: Mapping[int, int],
        payer: Payer,
        go_on: GoOn | None,
    ) -> Ticket:
        """Add a request that came at `since_s`; it stands behind all that came before it."""
        group = self._groups.get(key := (payer.team, key))
        if group is None:
            group = self._groups[key] = Group(key, next(self._numbers), decide, team=payer.team)
        elif not group.tickets:
            group.ask(decide)
        ticket = Ticket((since_s, self.next_number), group, turn, come, served_before, payer, go_on)
        self.next_number += 1
        if not group.tickets or group.tickets[-1].place < ticket.place:  # common case
            group.tickets.append(ticket)
        else:
            insort(group.tickets, ticket, key=_PLACE)
        self.depth += 1
        weights, team = group.weights, payer.team
        if weights:
            self.wanted[weights] = self.wanted.get(weights, 0) + 1
        if team:
            self.by_team[team] = self.by_team.get(team, 0) + 1
        return ticket

    def let_in(self, ticket: Ticket, started: Started | None = None) -> None:
        """End the wait of a ticket; it counts as entering until it leaves."""
        weights = ticket.group.weights
        self._out_of_group(ticket)
        ticket.let_in(started)
        if weights:
            self.entering[weights] = self.entering.get(weights, 0) + 1

    def leave(self, ticket: Ticket) -> None:
        """Remove a ticket, however its wait ended."""
        ticket.leave()
        weights = ticket.let_in_to
        if weights is None:
            weights = ticket.group.weights
            self._out_of_group(ticket)
        else:
            _less(self.entering, weights)
        self.depth -= 1
        _less(self.by_team, ticket.payer.team)
        _less(self.wanted, weights)

    def _out_of_group(self, ticket: Ticket) -> None:
        group = ticket.group
        at = 0 if group.tickets[0] is ticket else bisect_left(group.tickets, ticket.place, key=_PLACE)
        del group.tickets[at]
        if not group.tickets:
            group.ask(_nobody)

    def drop_empty(self) -> None:
        """Forget the groups in which nobody waits."""
        if len(self._groups) > self.depth:
            self._groups = {key: group for key, group in self._groups.items() if group.tickets}

    def decide(self, group: Group) -> None:
        """Decide for a group under the current state."""
        weights = group.weights
        group.take(group.decide())
        if weights != group.weights:
            _less(self.wanted, weights, len(group.tickets))
            self.wanted[group.weights] = self.wanted.get(group.weights, 0) + len(group.tickets)

    def fail(self, error: RouterError) -> None:
        """End the wait of all with an error."""
        for group in self._groups.values():
            for ticket in group.tickets:
                ticket.fail(error)

    def up_to(self, since_s: float) -> Iterator[Ticket]:
        """Iterate over those that came by then, and the first one after it of each group."""
        for group in self:
            for ticket in group.tickets:
                yield ticket
                if ticket.since_s > since_s:
                    break

    def rows(self) -> list[tuple[str, float, str]]:
        """Return the weights that each one waits for ("" = not known), since when, and its team, in order."""
        places = sorted((ticket.place, group.weights, group.team) for group in self for ticket in group.tickets)
        return [(weights, since_s, team) for (since_s, _), weights, team in places]

    def payers(self) -> Iterator[Payer]:
        """Iterate over those who wait."""
        return (ticket.payer for group in self for ticket in group.tickets)

    def position(self, ticket: Ticket) -> int:
        """Return the place of a ticket among all, from 1."""
        return 1 + sum(bisect_left(group.tickets, ticket.place, key=_PLACE) for group in self._groups.values())


def _nobody() -> Decision:
    raise AssertionError("nobody waits")


def _less(counts: dict[str, int], name: str, by: int = 1) -> None:
    """Take from the count of some weights, or of a team, which is named; what counts 0 is no entry."""
    if name:
        left = counts.get(name, 0) - by
        if left:
            counts[name] = left
        else:
            counts.pop(name, None)
