"""What the edge needs of a dispatcher, be there one backend or several."""

from __future__ import annotations

from typing import Protocol

from router.errors import RouterError
from router.routing.call import Answer, Call
from router.routing.outcomes import Blocked
from router.routing.queued import Queued
from router.routing.underway import Reply, Underway


class Dispatching(Protocol):
    """Carries out requests; see `Dispatcher`."""

    def start(self, call: Call, reply: Reply) -> Underway | Queued | Blocked | RouterError:
        """Send the request now if nothing must be awaited."""

    async def dispatch(self, call: Call, blocked: Blocked | None = None) -> Answer:
        """Return the answer to one inference request."""

    def abandon(self, call: Call) -> None:
        """Release what a request holds if its task was cancelled before it began."""

    def gone(self) -> Blocked:
        """Return what blocks a request that is to be attempted again."""
