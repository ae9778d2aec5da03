"""What a front has under way on each node: the newest view of a node may be older than the last request to it."""

from __future__ import annotations

from router.routing.call import Call
from router.routing.front.going import ALL


class UnderWay:
    """Counts requests by node and weights, from when a node was chosen until the request has left it."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._where: dict[Call, tuple[str, str]] = {}

    def count(self, node: str, weights: str) -> int:
        """Return how many requests for these weights ("" = for all) are under way on a node."""
        return self._counts.get((node, weights), 0)

    def enter(self, call: Call, node: str, weights: str) -> None:
        """Count a request on a node."""
        self.leave(call)
        self._where[call] = node, weights
        for key in {(node, weights), (node, ALL)}:
            self._counts[key] = self._counts.get(key, 0) + 1

    def leave(self, call: Call) -> None:
        """Count that a request has left its node, if it is at one."""
        where = self._where.pop(call, None)
        if where is None:
            return
        for key in {where, (where[0], ALL)}:
            left = self._counts[key] - 1
            if left:
                self._counts[key] = left
            else:
                del self._counts[key]
