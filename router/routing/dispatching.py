"""What the edge needs of a dispatcher, be there one backend or several."""

from __future__ import annotations

from typing import Protocol

from router.errors import RouterError
from router.routing.answer import Answer
from router.routing.call import Call
from router.routing.outcomes import Blocked
from router.routing.underway import Reply


class Begun(Protocol):
    """A request that was sent or waits for its turn; `reply` is called once, unless it is given up."""

    def give_up(self, *, is_gone: bool = True) -> None:
        """Cancel it: its client has left, or the router stops."""


class Dispatching(Protocol):
    """Carries out requests; see `Dispatcher`."""

    def start(self, call: Call, reply: Reply) -> Begun | Blocked | RouterError:
        """Send the request now if nothing must be awaited."""

    async def dispatch(self, call: Call, blocked: Blocked | None = None) -> Answer:
        """Return the answer to one inference request."""

    def abandon(self, call: Call) -> None:
        """Release what a request holds if its task was cancelled before it began."""

    def gone(self) -> Blocked:
        """Return what blocks a request that is to be attempted again."""
