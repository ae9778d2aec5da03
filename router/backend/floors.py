"""What other programs leave of each card: the least since a time, which a return to a bigger variant may count on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from router.core.ollama.runner import Gpu

Steps = Mapping[int, tuple[tuple[float, int], ...]]
"""By card, (age in seconds, bytes), oldest first: from one step on, no less was left."""


class Floors:
    """The bytes that others left of each card, as noted over `history_s`, the last time at `noted_at_s`.

    Only what can still be the least of some time is kept: of each card a rising row, as a rule of one or two entries.
    """

    def __init__(self, history_s: float) -> None:
        self._history_s = history_s
        self._rows: dict[int, deque[tuple[float, int]]] = {}
        self._last: Mapping[int, int] | None = None
        self._held: Mapping[int, int] | None = None
        self.noted_at_s = -math.inf

    def expire(self, now_s: float) -> None:
        """Drop what is older than the history."""
        for row in self._rows.values():
            while row and row[0][0] < now_s - self._history_s:
                row.popleft()
        if not any(self._rows.values()):
            self._last = None

    def note(self, now_s: float, left: Mapping[int, int]) -> None:
        """Note what others leave now."""
        self._last, self.noted_at_s = left, now_s
        for card, count in left.items():
            row = self._rows.setdefault(card, deque())
            while row and row[-1][1] >= count:
                row.pop()
            row.append((now_s, count))

    def last(self) -> Mapping[int, int] | None:
        """Return what was noted last, None without history."""
        return self._last

    def steps(self, now_s: float) -> Steps:
        """Return the least of each card by age; {} without history."""
        return {card: tuple((now_s - at_s, count) for at_s, count in row) for card, row in self._rows.items() if row}

    def hold(self, left: Mapping[int, int] | None) -> None:
        """Keep to `left` during a switch, by which it was decided; None after it."""
        self._held = left

    def undisturbed(self, gpus: tuple[Gpu, ...] | None, held_on: Callable[[int], int]) -> tuple[Gpu, ...] | None:
        """Return `gpus` with what others left last, less what is held of each card; as they are without history."""
        left = self._held if self._held is not None else self._last or {}
        free = {card: max(0, count - held_on(card)) for card, count in left.items()}
        return gpus and tuple(replace(gpu, free_bytes=free.get(gpu.index, gpu.free_bytes)) for gpu in gpus)

    def clear(self) -> None:
        """Drop the history: the cards have other numbers."""
        self._rows.clear()
        self._last = self._held = None
