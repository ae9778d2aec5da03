"""What a front has under way on each node: the newest view of a node may be older than the last request to it."""

from __future__ import annotations

from router.routing.front.going import ALL


class UnderWay:
    """Counts requests by node and weights."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def count(self, node: str, weights: str) -> int:
        """Return how many requests for these weights ("" = for all) are under way on a node."""
        return self._counts.get((node, weights), 0)

    def enter(self, node: str, weights: str) -> None:
        """Count a request."""
        for key in {(node, weights), (node, ALL)}:
            self._counts[key] = self._counts.get(key, 0) + 1

    def leave(self, node: str, weights: str) -> None:
        """Count the end of one."""
        for key in {(node, weights), (node, ALL)}:
            left = self._counts[key] - 1
            if left:
                self._counts[key] = left
            else:
                del self._counts[key]
