"""Who of those that wait in front of one backend enters which resident: as many as it has slots, the oldest first.

The rules (`core/decision/turns.py`) say which groups may enter; within them this module fills the slots. A request that
ends, or one more for the same, fills them again without a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from router.backend.slots import Runner, Slots
from router.backend.tickets import Group, Ticket, Waitlist
from router.backend.tracked import Tracked
from router.backend.world import World
from router.core.ollama.options import ServerSettings


class Admission:
    """The tickets and the slots of one backend. `closed` are the weights of residents that take no new requests."""

    def __init__(self, world: World, settings: Callable[[], ServerSettings], ahead: int) -> None:
        self.closed: frozenset[str] = frozenset()
        self.waitlist = Waitlist()
        self.slots = Slots(ahead, settings, world.installed.by_weights, self._fill_up)
        self._world = world
        self._ready: dict[str, list[Group]] = {}  # by weights, the groups that are let in as soon as there is a slot

    def close(self, closed: frozenset[str]) -> None:
        """Set which residents take no new requests."""
        self.closed = closed

    def may_enter(self, weights: str) -> bool:
        """Return True if a resident has a slot for a request that does not wait here, and nobody waits before it."""
        tracked = self._world.residents.get(weights)
        return weights not in self.waitlist.wanted and (tracked is None or self.slots.is_free(tracked))

    # --- the groups --------------------------------------------------------------------------------------------

    def decided(self, loaded: str, now_s: float) -> list[Group]:
        """Return the groups with their decisions now; those that waited while `loaded` was loaded are due.

        Of those that wait for a slot of the same resident only the first is decided again: each decides once more when
        it is let in.
        """
        groups, decided = list(self.waitlist), set[str]()
        for group in sorted(groups, key=lambda one: one.tickets[0].place):
            if group.uses not in decided or not self._is_usable(group.uses, now_s):
                self.waitlist.decide(group)
                decided.add(group.uses)
            if loaded and group.uses == loaded:
                group.came_due(self.waitlist.next_number)
        self._world.want(self.waitlist.wanted)
        return groups

    def _is_usable(self, weights: str, now_s: float) -> bool:
        tracked = self._world.residents.get(weights)
        return tracked is not None and not tracked.is_spilled and now_s >= tracked.going_until_s

    def let_in(self, groups: Collection[Group], numbers: Collection[int]) -> None:
        """Let in the groups with these numbers: to their resident as it has slots, or to be decided again."""
        self._ready = {}
        for group in groups:
            if group.number not in numbers:
                continue
            if weights := group.uses:
                self._ready.setdefault(weights, []).append(group)
                if weights not in self.closed:
                    group.came_due(self.waitlist.next_number)
            else:
                for ticket in tuple(group.tickets):
                    self.waitlist.let_in(ticket)
        for weights in self._ready:
            self.fill(weights)

    # --- the slots ---------------------------------------------------------------------------------------------

    def joined(self, ticket: Ticket) -> bool:
        """Return True if nothing has to be decided for a new ticket: it waits for a slot as others do."""
        is_ready = ticket.group in self._ready.get(ticket.weights, ())
        if is_ready:
            self.fill(ticket.weights)
        return is_ready

    def left(self, tracked: Tracked, now_s: float) -> bool:
        """Note that a request to a resident has ended; return True if another one has its slot."""
        if tracked.weights not in self._ready:
            tracked.slots.pause()
            return False
        tracked.slots.ended(now_s)
        return self.fill(tracked.weights)

    def fill(self, weights: str) -> bool:
        """Let in to a resident as many as it has slots for; return True if somebody was let in."""
        tracked, has_let_in = self._world.residents.get(weights), False
        while tracked is not None and (first := self._next(weights)) is not None:
            if not self.slots.is_free(tracked, self.waitlist.entering(weights)):
                break
            self.waitlist.let_in(first)
            has_let_in = True
        return has_let_in

    def _next(self, weights: str) -> Ticket | None:
        """Return who is next at a resident, None if nobody waits for it or those who do are kept out."""
        is_closed = weights in self.closed
        firsts = (group.first(is_due=is_closed) for group in self._ready.get(weights, ()))
        return min((first for first in firsts if first is not None), key=lambda ticket: ticket.place, default=None)

    def _fill_up(self, runner: Runner) -> None:
        """Use a further slot that a runner has shown."""
        self.fill(runner.weights)

    def pace_s(self, weights: str) -> float | None:
        """Return the seconds between two requests that enter a resident; None if nobody waits for a slot of it."""
        tracked = self._world.residents.get(weights)
        return (tracked.slots.gap_s or 1.0) if tracked is not None and weights in self._ready else None
