"""One budget for the bodies of all requests: many large ones at once, or ones that stall, must not fill the memory.

Nor must one client have all of it: an address with several bodies leaves a part to others, and if it has more than its
fair part when another one needs room, its bodies that are still arriving end, the youngest first.
"""

from __future__ import annotations

import asyncio

from router.errors import BodyTooLarge, Busy

FOR_OTHERS = 8
"""An address with several bodies leaves this part of the budget to others, one of so many."""


class Holding:
    """What one body has of a budget. Raises Busy, BodyTooLarge where it says so."""

    __slots__ = ("_budget", "address", "arriving", "held_bytes", "is_ended")

    def __init__(self, budget: BodyBudget, address: str) -> None:
        self._budget = budget
        self.address = address
        self.held_bytes = 0
        self.arriving: asyncio.Timeout | None = None  # ends its reading, while it waits for the client
        self.is_ended = False

    def claim(self, size: int) -> None:
        """Count `size` further bytes. Raises Busy, or BodyTooLarge for what does not fit if there is no other body."""
        self._budget.claim(self, size)

    def release(self) -> None:
        """Give back all of it; idempotent."""
        self._budget.release(self)

    def end(self) -> None:
        """Make room for another one: its reader gets a TimeoutError."""
        self.is_ended = True
        self.release()
        if self.arriving is not None:
            self.arriving.reschedule(asyncio.get_running_loop().time())

    def busy(self) -> Busy:
        """Return the error for its client."""
        text = f"the bodies of other requests take up the {self._budget.limit_bytes} bytes for all bodies"
        return Busy(f"server busy, please try again.  {text}")


class Share:
    """The bodies of one address, the oldest first, and what they have together."""

    __slots__ = ("held_bytes", "holdings")

    def __init__(self) -> None:
        self.held_bytes = 0
        self.holdings: dict[Holding, None] = {}

    def add(self, holding: Holding, size: int) -> None:
        self.holdings[holding] = None
        holding.held_bytes += size
        self.held_bytes += size

    def remove(self, holding: Holding) -> int:
        """Remove a body; return what it has had."""
        self.holdings.pop(holding, None)
        size, holding.held_bytes = holding.held_bytes, 0
        self.held_bytes -= size
        return size

    def youngest(self) -> Holding | None:
        """Return the youngest body that is still arriving."""
        return next((one for one in reversed(self.holdings) if one.arriving is not None), None)


class BodyBudget:
    """Counts the bytes of request bodies that are held. Bodies on the fast path are small, and not counted."""

    __slots__ = ("_shares", "held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._shares: dict[str, Share] = {}

    def claim(self, holding: Holding, size: int) -> None:
        """Count `size` further bytes of a body. Raises Busy, or BodyTooLarge."""
        if holding.held_bytes + size > self.limit_bytes:
            raise BodyTooLarge(f"the request's body is larger than {self.limit_bytes} bytes, the most for all bodies")
        share = self._shares.setdefault(holding.address, Share())
        if not self._has_room(share, holding, size):
            raise holding.busy()
        share.add(holding, size)
        self.held_bytes += size

    def release(self, holding: Holding) -> None:
        """Give back what a body has."""
        share = self._shares.get(holding.address)
        if share is not None:
            self.held_bytes -= share.remove(holding)
            if not share.holdings:
                del self._shares[holding.address]

    def _has_room(self, share: Share, holding: Holding, size: int) -> bool:
        wanted = share.held_bytes + size
        is_only_one = share.held_bytes == holding.held_bytes
        if not is_only_one and wanted > self.limit_bytes - self.limit_bytes // FOR_OTHERS:
            return False
        fair_bytes = self.limit_bytes // len(self._shares)
        while self.held_bytes + size > self.limit_bytes:
            if wanted > fair_bytes or not self._makes_room(fair_bytes):
                return False
        return True

    def _makes_room(self, fair_bytes: int) -> bool:
        """End the youngest body that is still arriving of the address that has most; return False if there is none."""
        most = max(self._shares.values(), key=lambda share: share.held_bytes)
        found = most.youngest()
        if found is None or most.held_bytes <= fair_bytes:
            return False
        found.end()
        return True
