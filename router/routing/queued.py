"""A request that waits for its turn without a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.errors import RouterError
from router.routing.call import Call
from router.routing.outcomes import Blocked
from router.routing.underway import Reply, Underway


class Queued:
    """A request in the queue. When its turn has come, `again` attempts it once more.

    `reply` is called once, not after `give_up`. `turn` is as `Line.join` returns it; `leave` takes the request out of
    the queue and releases what it holds.
    """

    __slots__ = ("_again", "_call", "_first", "_leave", "_reply", "_underway")

    def __init__(
        self,
        call: Call,
        turn: asyncio.Future[str],
        again: Callable[[asyncio.Future[str]], Underway | Queued | Blocked | RouterError],
        leave: Callable[[], None],
        reply: Reply,
    ) -> None:
        self._call = call
        self._again = again
        self._leave = leave
        self._reply = reply
        self._underway: Underway | Queued | None = None
        self._first: Queued | None = None  # the one that the edge knows, if this one has followed it
        turn.add_done_callback(self._came)

    def _came(self, turn: asyncio.Future[str]) -> None:
        """Attempt it again, unless it was given up. Never raises, because the loop calls it."""
        if self._call.is_ended:
            return
        found = self._again(turn)
        if isinstance(found, (Underway, Queued)):
            (self._first or self).go_on(found)
        else:
            self._reply(found)

    def go_on(self, found: Underway | Queued) -> None:
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
        self._leave()
