"""What other programs leave of each card: the least of the last minute, which an upgrade may count on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class Floors:
    """The bytes that others left of each card, as noted over `history_s`."""

    def __init__(self, history_s: float) -> None:
        self._history_s = history_s
        self._noted: deque[tuple[float, Mapping[int, int]]] = deque()

    def expire(self, now_s: float) -> None:
        """Drop what is older than the history."""
        while self._noted and self._noted[0][0] < now_s - self._history_s:
            self._noted.popleft()

    def note(self, now_s: float, left: Mapping[int, int]) -> None:
        """Note what others leave now."""
        self._noted.append((now_s, left))

    def last(self) -> Mapping[int, int] | None:
        """Return what was noted last, None without history."""
        return self._noted[-1][1] if self._noted else None

    def least(self) -> dict[int, int]:
        """Return the least of each card; {} without history."""
        floors: dict[int, int] = {}
        for _, left in self._noted:
            for card, count in left.items():
                floors[card] = min(floors.get(card, count), count)
        return floors

    def clear(self) -> None:
        """Drop the history: the cards have other numbers."""
        self._noted.clear()
