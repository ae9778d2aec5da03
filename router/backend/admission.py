"""Who of those that wait in front of one backend enters which resident: as many as it has slots, the oldest first.

The rules (`core/decision/turns.py`) say which groups may enter; within them this module fills the slots. A request that
ends, or one more for the same, fills them again without a decision. Where teams compete, the one that has had least
comes first, and none enters that is too far ahead of one which waits to replace the resident (`shares.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter

from router.backend.bounds import Bounds
from router.backend.shares import Shares, rivals_of
from router.backend.slots import Slots
from router.backend.switches import Target
from router.backend.tickets import Group, Ticket
from router.backend.tracked import Tracked
from router.backend.world import World
from router.core.decision.groups import Waiting
from router.core.ollama.options import ServerSettings
from router.core.teams.payer import NOBODY, Asking, Payer, Started

_PLACE = attrgetter("place")


class Admission:
    """The tickets and the slots of one backend. `closed` are the weights of residents that take no new requests."""

    def __init__(
        self,
        world: World,
        shares: Shares,
        bounds: Bounds,
        settings: Callable[[], ServerSettings],
        ahead: int,
        gives_way: Callable[[str], bool],
    ) -> None:
        self.closed: frozenset[str] = frozenset()
        self.bounds, self.waitlist = bounds, bounds.waitlist
        self.slots = Slots(ahead, settings, world.installed.by_weights, lambda one: self.fill(one.weights))
        self._world = world
        self._shares = shares
        self._gives_way = gives_way
        self._rivals: Mapping[str, frozenset[str]] = {}  # by resident, the teams that wait to replace it
        self._first_served: Ticket | None = None  # for whom the last load was: it enters whoever is ahead
        self._is_contested = False  # whether teams competed when the rules were applied last
        self.held_s: Mapping[int, float] = {}  # by group, for how long a limit of its team forbids its load
        self._ready: dict[str, list[Group]] = {}  # by weights, the groups that are let in as soon as there is a slot
        self._ready_in = -1  # the epoch of that

    def close(self, closed: frozenset[str]) -> None:
        """Set which residents take no new requests."""
        self.closed = closed

    def may_enter(self, tracked: Tracked, team: str = "", *, needs_slot: bool = True) -> bool:
        """Return True if a request of a team that does not wait here may be sent to a resident immediately.

        If it needs a slot, there has to be one, and nobody who comes before it.
        """
        weights = tracked.weights
        if weights in self.closed or self._gives_way(weights):
            return False
        if not needs_slot:
            return True
        if self.waitlist.depth:
            rivals = self._rivals.get(weights)
            if weights in self.waitlist.wanted or (rivals and not self._shares.may_enter(team, rivals)):
                return False
        return self.slots.is_free(tracked)

    def enter(self, tracked: Tracked, request: Asking) -> Started | None:
        """Charge a request that has entered a resident; None if there is only one team."""
        if not self._shares.counts(request.team):
            return None
        payer = request.paying()
        granted = payer.take()
        if granted is None:
            if self._shares.is_first_of_another(payer.team):
                self._count_all()
            granted = self._shares.start(payer, tracked.weights)
        return granted

    def count_in(self, payer: Payer) -> None:
        """Count a request that waits; when a second team asks for the first time, all that wait."""
        payer.waits()
        if not self._shares.counts(payer.team):
            return
        if self._shares.is_first_of_another(payer.team):
            self._count_all()
        self._shares.wait(payer)

    def _count_all(self) -> None:
        for payer in self.waitlist.payers():
            self._shares.wait(payer)

    # --- the groups --------------------------------------------------------------------------------------------

    def decided(self, loaded: Target | None, now_s: float) -> list[Group]:
        """Return the groups with their decisions now; those that waited while `loaded` was loaded are due.

        Of those that wait for a slot of the same resident only the first is decided again: each decides once more when
        it is let in.
        """
        self.waitlist.drop_empty()
        groups, decided = list(self.waitlist), set[str]()
        self._is_contested = self._shares.is_contested
        for group in sorted(groups, key=lambda one: one.tickets[0].place):
            if group.uses not in decided or not _is_usable(self._world.residents.get(group.uses), now_s):
                self.waitlist.decide(group)
                decided.add(group.uses)
            if loaded is not None and group.uses == loaded.weights:
                group.came_due(self.waitlist.next_number)
        if loaded is not None:
            self._first_served = _cause(groups, loaded)
        for group in groups:
            if group.claim or group.plan is not None:
                group.claim_what_blocks(self._world.residents)
        held_s = self.bounds.held_s([(one.tickets[0].payer, one.plan, one.weights) for one in groups])
        self.held_s = {groups[at].number: seconds for at, seconds in held_s.items()}
        self._world.want(self.waitlist.wanted)
        self._rivals = (
            rivals_of((one.team, one.claim) for one in groups if one.number not in self.held_s)
            if self._is_contested
            else {}
        )
        return groups

    def waiting(self, groups: Collection[Group]) -> list[Waiting]:
        """Return the groups as the rules of the line see them."""
        return [
            group.waiting(
                is_due=self._due(group) is not None,
                level_s=self._shares.level_s(group.team) if self._is_contested else 0.0,
                served_s=self._shares.served_s(group.team) if self._is_contested else -math.inf,
                is_barred=not self._is_open(group),
                is_held=group.number in self.held_s,
            )
            for group in groups
        ]

    def _is_open(self, group: Group) -> bool:
        """Return True if the team of a group is not too far ahead for the resident that it waits for."""
        rivals = self._rivals.get(group.uses) if self._rivals else None
        return not rivals or self._shares.may_enter(group.team, rivals)

    def _due(self, group: Group) -> Ticket | None:
        """Return who of a group enters its resident though it is closed; where teams compete that is one."""
        if not self._is_contested:
            return group.first(is_due=True)
        first = self._first_served
        if first is None or first.group is not group or first.has_left or first.let_in_to is not None:
            return None
        return first

    def cause(self, weights: str) -> Payer:
        """Return who pays for loading these weights: of the team that has had least, who has waited longest."""
        mine = [group for group in self.waitlist if group.weights == weights]
        firsts = [group.tickets[0] for group in mine if group.number not in self.held_s]
        found = self._first(firsts)
        return found.payer if found is not None else NOBODY

    def _first(self, firsts: Collection[Ticket]) -> Ticket | None:
        """Return who is next of those that are first in their groups."""
        if self._shares.is_contested:
            team = self._shares.next_of({ticket.payer.team for ticket in firsts})
            firsts = [ticket for ticket in firsts if ticket.payer.team == team]
        return min(firsts, key=_PLACE, default=None)

    def let_in(self, groups: Collection[Group], numbers: Collection[int], shut: Collection[str]) -> None:
        """Let in the groups with these numbers: to their resident as it has slots, or to be decided again.

        Those whose team is too far ahead enter when it is not any more; nobody new enters the residents in `shut`.
        """
        self._ready, self._ready_in = {}, self._world.epoch.number
        for group in groups:
            is_barred = self._is_contested and group.uses and group.uses not in shut
            if not (group.number in numbers or is_barred):
                continue
            if weights := group.uses:
                self._ready.setdefault(weights, []).append(group)
                if weights not in self.closed:
                    group.came_due(self.waitlist.next_number)
            else:
                for ticket in tuple(group.tickets):
                    self._shares.leave(ticket.payer)
                    self.waitlist.let_in(ticket)
        for weights in self._ready:
            self.fill(weights)

    # --- the slots ---------------------------------------------------------------------------------------------

    def joined(self, ticket: Ticket, *, is_again: bool = False) -> bool:
        """Return True if nothing has to be decided for a new ticket: it waits for a slot as others do.

        With `is_again` its request has just not used a turn: what was decided for its group holds no longer.
        """
        if is_again:
            ticket.payer.give_back()
            self.waitlist.decide(ticket.group)
            return False
        group = ticket.group
        is_alone = len(group.tickets) == 1
        if (is_alone and not self._is_ready(group)) or group not in self._ready.get(group.weights, ()):
            return False
        # While others wait before it all slots were taken when last a request ended; but an answer may have arrived.
        tracked = self._world.residents.get(group.weights)
        if is_alone or tracked is None or tracked.slots.arrived():
            self.fill(group.weights)
        return True

    def _is_ready(self, group: Group) -> bool:
        """Return True if a group in which nobody waited is let in like others for its resident; then it joins them.

        That is so while everything is as it was when the rules were applied: they would find the same.
        """
        is_changed = self._ready_in != self._world.epoch.number or self._is_contested != self._shares.is_contested
        if is_changed or self._rivals:
            return False
        if group.decision is None:
            self.waitlist.decide(group)
        ready = self._ready.get(group.uses)
        if ready is None or group.uses in self.closed or self._gives_way(group.uses):
            return False
        if group not in ready:
            ready[:] = [other for other in ready if other.tickets]
            ready.append(group)
        return True

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket out of the line, however its wait has ended."""
        self.waitlist.leave(ticket)
        self._shares.leave(ticket.payer)

    def settle(self, ticket: Ticket) -> None:
        """Take back the turn of a request that has not used it."""
        ticket.settle()
        self.fill(ticket.weights)

    def left(self, tracked: Tracked, now_s: float) -> bool:
        """Note that a request to a resident has ended; return True if another one has its slot."""
        if tracked.weights not in self.waitlist.wanted or tracked.weights not in self._ready:
            tracked.slots.pause()
            return False
        tracked.slots.ended(now_s)
        return self.fill(tracked.weights)

    def fill(self, weights: str) -> bool:
        """Let in to a resident as many as it has slots for; return True if somebody was let in."""
        tracked = self._world.residents.get(weights)
        free = self.slots.free(tracked, self.waitlist.entering.get(weights, 0)) if tracked is not None else 0
        has_let_in = False
        while free > 0 and (first := self._next(weights)) is not None:
            self.waitlist.let_in(first, self._shares.start(first.payer, weights))
            free, has_let_in = free - 1, True
        return has_let_in

    def _next(self, weights: str) -> Ticket | None:
        """Return who is next at a resident, None if nobody waits for it or those who do are kept out."""
        is_closed, firsts, groups = weights in self.closed, list[Ticket](), self._ready.get(weights, ())
        if len(groups) == 1 and not (is_closed or self._rivals):  # common case
            return groups[0].tickets[0] if groups[0].tickets else None
        for group in groups:
            if not group.tickets:
                continue
            is_kept_out = is_closed or not self._is_open(group)
            if (first := self._due(group) if is_kept_out else group.first(is_due=False)) is not None:
                firsts.append(first)
        return self._first(firsts) if len(firsts) > 1 else firsts[0] if firsts else None

    def pace_s(self, weights: str) -> float | None:
        """Return the seconds between two requests that enter a resident; None if nobody waits for a slot of it."""
        tracked = self._world.residents.get(weights)
        return (tracked.slots.gap_s or 1.0) if tracked is not None and weights in self._ready else None


def _cause(groups: Collection[Group], loaded: Target) -> Ticket | None:
    """Return for whom a model was loaded, of those that wait for it now."""
    firsts = [one.tickets[0] for one in groups if one.uses == loaded.weights and one.team == loaded.payer.team]
    return min(firsts, key=_PLACE, default=None)


def _is_usable(tracked: Tracked | None, now_s: float) -> bool:
    return tracked is not None and not tracked.is_spilled and now_s >= tracked.going_until_s
