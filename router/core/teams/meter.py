"""What a request has taken of a loaded model: its part of the time in which the model was busy. Pure."""

from __future__ import annotations


class Meter:
    """One loaded model. At each moment the requests under way share its time in equal parts.

    So the parts of all requests add up to the time in which it was busy, whatever runs in parallel, and no figure of
    Ollama's answers is needed, which embeddings and `/v1` do not have.
    """

    __slots__ = ("_at_s", "_part_s", "_under_way")

    def __init__(self) -> None:
        self._under_way = 0
        self._at_s = 0.0
        self._part_s = 0.0  # what a request would have taken that was under way from the beginning

    def enter(self, now_s: float) -> float:
        """Record that a request begins at `now_s`; the result is for `leave`."""
        if under_way := self._under_way:
            self._part_s += (now_s - self._at_s) / under_way
        self._at_s, self._under_way = now_s, under_way + 1
        return self._part_s

    def leave(self, entered: float, now_s: float) -> float:
        """Record that a request ends at `now_s`; return the seconds that it has taken."""
        under_way = self._under_way
        self._part_s = part_s = self._part_s + (now_s - self._at_s) / under_way
        self._at_s, self._under_way = now_s, under_way - 1
        return part_s - entered
