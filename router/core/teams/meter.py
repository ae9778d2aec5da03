"""What a request has taken of a loaded model: its part of the time in which the model was busy. Pure."""

from __future__ import annotations


class Part:
    """A request under way. `since_s` is what the meter said when the model began to work on it; None = it waits."""

    __slots__ = ("since_s",)

    def __init__(self, since_s: float | None = None) -> None:
        self.since_s = since_s


class Meter:
    """One loaded model. At each moment the requests that it works on share its time in equal parts.

    It works on as many as it has places, those that came first. The others wait for one, and take nothing meanwhile: a
    short request behind a long one is not to pay for that. So the parts of all requests add up to the time in which it
    was busy, whatever runs in parallel, and no figure of Ollama's answers is needed, which embeddings and `/v1` do not
    have.
    """

    __slots__ = ("_at_s", "_part_s", "_waiting", "_working")

    def __init__(self) -> None:
        self._working = 0
        self._waiting: dict[Part, None] = {}  # by the order in which they came
        self._at_s = 0.0
        self._part_s = 0.0  # what a request would have taken that was at work from the beginning

    def enter(self, now_s: float, places: int) -> Part:
        """Record that a request begins at `now_s`, while the model has `places`; the result is for `leave`."""
        self._advance(now_s)
        if not self._waiting and (self._working < places or not self._working):
            self._working += 1
            return Part(self._part_s)
        part = Part()
        self._waiting[part] = None
        if self._working < places:
            self._fill(places)
        return part

    def leave(self, part: Part, now_s: float, places: int) -> float:
        """Record that a request ends at `now_s`; return the seconds that it has taken."""
        self._advance(now_s)
        if part.since_s is None:
            del self._waiting[part]
            return 0.0
        self._working -= 1
        if self._waiting:
            self._fill(places)
        return self._part_s - part.since_s

    def _advance(self, now_s: float) -> None:
        if self._working:
            self._part_s += (now_s - self._at_s) / self._working
        self._at_s = now_s

    def _fill(self, places: int) -> None:
        """Let those work that wait, as far as there are places; there is always one."""
        while self._waiting and (self._working < places or not self._working):
            part = next(iter(self._waiting))
            del self._waiting[part]
            part.since_s = self._part_s
            self._working += 1
