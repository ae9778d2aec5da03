"""A ticket per request that waits in front of one backend, and groups of those that get equal decisions."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

import msgspec

from router.backend.tracked import Tracked
from router.core.decision.groups import Waiting, in_the_way, wanted_weights
from router.core.decision.plan import Plan
from router.core.decision.verdict import Decision, VerdictKind
from router.core.teams.payer import Payer, Started
from router.errors import RouterError

AGAIN_S = 0.01
"""Pause of a request that has not used its turn, so that one which never does cannot stop the loop."""

GoOn = Callable[["Ticket"], bool]
"""Continues a request whose wait has ended; returns whether it has entered the resident that it was let in to."""


class Ticket(msgspec.Struct, eq=False):
    """One waiting request; `place` is what the line is ordered by: when the request came, and the ticket's number.

    At the end of its wait the request is decided again, or told the `error`: by `turn`, whose result is the weights
    that it was let in to, or without one by `go_on`, which `come` sees to. `has_left` once it is in the line no more.
    `served_before` holds, by the resident's `order`, what was served when it began to wait.
    `payer` is charged the switches that it causes, `started` is the charge of the resident that it was let in to.
    """

    place: tuple[float, int]
    group: Group
    turn: asyncio.Future[str] | None
    come: Callable[[Ticket], None]
    served_before: Mapping[int, int]
    payer: Payer
    go_on: GoOn | None = None
    let_in_to: str | None = None
    started: Started | None = None
    error: RouterError | None = None
    has_left: bool = False
    pauses: bool = False

    @property
    def since_s(self) -> float:
        return self.place[0]

    @property
    def weights(self) -> str:
        """The weights that it waits for, or was let in to."""
        return self.group.weights if self.let_in_to is None else self.let_in_to

    def pause(self) -> None:
        """Let its turn take `AGAIN_S` to come: the request has not used the one before."""
        self.pauses = True

    def let_in(self, started: Started | None = None) -> None:
        """End the wait."""
        self.let_in_to = self.group.weights
        if started is not None:
            self.started = started
            self.payer.grant(started)
        if self.pauses:
            asyncio.get_running_loop().call_later(AGAIN_S, self._end)
        else:
            self._end()

    def _end(self) -> None:
        if self.turn is None:
            self.come(self)
        elif not self.turn.done():
            if self.error is None:
                self.turn.set_result(self.weights)
            else:
                self.turn.set_exception(self.error)

    @property
    def is_waiting(self) -> bool:
        """True until it is let in, or its wait has ended otherwise."""
        return self.let_in_to is None and self.error is None and not self.has_left

    def leave(self) -> None:
        """Record that it is in the line no more."""
        self.has_left = True

    def settle(self) -> None:
        """Take back the charge of a turn that the request has not used."""
        if self.started is not None and self.payer.granted is self.started:
            self.payer.give_back()

    def fail(self, error: RouterError) -> None:
        """End the wait with an error."""
        if self.is_waiting:
            self.error = error
            self._end()


_PLACE = attrgetter("place")


@dataclass(slots=True, eq=False)
class Group:
    """Requests of a team with equal keys, which get equal decisions. `tickets` are those that wait, the oldest first.

    One in which nobody waits any more is kept until the rules are applied again: for the next equal request its
    decision may still hold.

    `decision` is the last one, `weights` what it waits for. Tickets with a number below `due_before` are due: the model
    was loaded, or open to them, while they waited.
    """

    key: Hashable
    number: int
    decide: Callable[[], Decision]
    tickets: list[Ticket] = field(default_factory=list)
    decision: Decision | None = None
    weights: str = ""
    due_before: int = -1
    team: str = ""
    claim: frozenset[str] = frozenset()

    def claim_what_blocks(self, loaded: Mapping[str, Tracked]) -> None:
        """Keep to the residents that were in its way first, of those that are `loaded`, until they are idle or gone.

        Of two busy ones the plan names now this one, now that one, as their requests come and go: neither would ever
        become idle if only the one of the moment took no requests.
        """
        blocks = self.blocks
        is_busy = any(one in loaded and loaded[one].in_flight for one in self.claim)
        if not (blocks and is_busy and self.claim <= loaded.keys()):
            self.claim = blocks

    @property
    def blocks(self) -> frozenset[str]:
        """The residents that are in the way of its load."""
        return in_the_way(self.plan)

    @property
    def uses(self) -> str:
        """The weights of the resident that it waits for a slot of; "" if it waits for something else."""
        chosen = self.decision.chosen if self.decision is not None else None
        return self.weights if chosen is not None and chosen.kind is VerdictKind.RESIDENT else ""

    def first(self, *, is_due: bool) -> Ticket | None:
        """Return who is first, or with `is_due` the first one that is due."""
        if not is_due:
            return self.tickets[0] if self.tickets else None
        return next((ticket for ticket in self.tickets if ticket.place[1] < self.due_before), None)

    def ask(self, decide: Callable[[], Decision]) -> None:
        """Set what decides for it. A group in which nobody waits must keep no request alive."""
        self.decide = decide

    def take(self, decision: Decision) -> None:
        """Set the decision; one that waits for nothing leaves the last weights that it waited for."""
        weights = wanted_weights(decision) or self.weights
        self.decision = decision
        if weights != self.weights:
            self.weights, self.due_before = weights, -1

    @property
    def plan(self) -> Plan | None:
        """The load that it waits for; None if it waits for something else."""
        chosen = self.decision.chosen if self.decision is not None else None
        return chosen.plan if chosen is not None else None

    def came_due(self, before: int) -> None:
        """Mark the tickets with a number below `before` as due."""
        self.due_before = before

    def waiting(
        self,
        *,
        is_due: bool,
        level_s: float = 0.0,
        served_s: float = -math.inf,
        is_barred: bool = False,
        is_held: bool = False,
    ) -> Waiting:
        """Return it as the rules of the line see it; it waits since its team was served at `served_s`."""
        assert self.decision is not None
        oldest, count = self.tickets[0], len(self.tickets)
        since_s, before = max(oldest.since_s, served_s), oldest.served_before
        return Waiting(
            self.number, since_s, self.decision, before, is_due, count, level_s, is_barred, is_held, self.claim
        )
