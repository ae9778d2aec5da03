"""A request that waits for its turn without a task."""

from __future__ import annotations

from typing import Protocol

from router.backend.tickets import Ticket
from router.errors import RouterError
from router.routing.call import Call
from router.routing.outcomes import Blocked
from router.routing.underway import Reply, Underway


class Driver(Protocol):
    """What attempts a request: see `Dispatcher`."""

    def again(self, call: Call, ticket: Ticket, reply: Reply) -> Underway | Queued | Blocked | RouterError: ...

    def give_up(self, call: Call, ticket: Ticket) -> None: ...


class Queued:
    """A request in the queue. When its turn has come, `driver` attempts it once more.

    `reply` is called once, not after `give_up`.
    """

    __slots__ = ("_call", "_driver", "_first", "_reply", "_ticket", "_underway")

    def __init__(self, driver: Driver, call: Call, reply: Reply) -> None:
        self._driver = driver
        self._call = call
        self._reply = reply
        self._ticket: Ticket | None = None
        self._underway: Underway | Queued | None = None
        self._first: Queued | None = None  # the one that the edge knows, if this one has followed it

    def wait(self, ticket: Ticket) -> None:
        """Set its place in the queue."""
        self._ticket = ticket

    def go_on(self, ticket: Ticket) -> bool:
        """Attempt it again; return whether it has entered the resident that it was let in to."""
        call, self._ticket = self._call, None  # break the reference cycle: nothing is left for the garbage collector
        if call.is_ended:
            return False
        found = self._driver.again(call, ticket, self._reply)
        if isinstance(found, (Underway, Queued)):
            (self._first or self).take(found)
        else:
            self._reply(found)
        return not call.let_in_to

    def take(self, found: Underway | Queued) -> None:
        """Take what an attempt has returned in place of the one before: a request may queue any number of times."""
        self._underway = found
        if isinstance(found, Queued):
            found.follow(self)

    def follow(self, first: Queued) -> None:
        """Set which one the edge knows: that is given up, and has what comes."""
        self._first = first

    def give_up(self, *, is_gone: bool = True) -> None:
        """Leave the queue, or cancel the request upstream: its client has left, or the router stops."""
        if self._underway is not None:
            self._underway.give_up(is_gone=is_gone)
            return
        self._call.give_up(is_gone=is_gone)
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._driver.give_up(self._call, ticket)
