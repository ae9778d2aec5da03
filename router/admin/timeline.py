"""What was loaded on which card over the last hour, and the switches and spills between: the dashboard's timeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from router.telemetry import Decided, Event, Finished, Spilled, SteadyTime, Switched

KEPT_S = 3600.0
MAX_SPANS, MAX_MARKS = 500, 200
"""The most spans and marks that are kept; with more the oldest are dropped."""


@dataclass(slots=True)
class Span:
    """One model on one card from `from_s` to `to_s` (steady time; None = still loaded)."""

    card: int
    model: str
    from_s: float
    to_s: float | None = None

    def end(self, at_s: float) -> None:
        """Record that it was unloaded."""
        self.to_s = at_s


class Timeline:
    """Keeps spans and marks of the last hour of `time`. As a telemetry hook it notes switches; `observe` notes what is
    loaded."""

    def __init__(self, time: SteadyTime) -> None:
        self._time = time
        self._since_s = time.now_s()
        self._open: dict[tuple[int, str], Span] = {}
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)

    def on(self, event: Event) -> None:
        """Note the end of a switch, or a spill."""
        if isinstance(event, Switched) and event.phase != "started":
            facts = {"kind": f"switch {event.phase}", "model": event.model, "evicted": list(event.evicted)}
            self._marks.append({"at": self._time.now_s(), **facts, "took_s": event.duration_s, "error": event.error})
        elif isinstance(event, Spilled):
            self._marks.append({"at": self._time.now_s(), "kind": "spill", "model": event.model})

    def on_requests(self, _decided: Sequence[Decided], _finished: Sequence[Finished]) -> None:
        """Ignore the events of requests: a call per batch instead of one per event."""

    def observe(self, loaded: Iterable[tuple[int, str]]) -> None:
        """Note which models are loaded now, as pairs of card and name."""
        now_s, current = self._time.now_s(), set(loaded)
        for key in [key for key in self._open if key not in current]:
            self._open.pop(key).end(now_s)
        for key in current - self._open.keys():
            span = self._open[key] = Span(*key, now_s)
            self._spans.append(span)

    def as_data(self) -> dict[str, Any]:
        """Return spans and marks of the last hour, oldest first; times are Unix seconds."""
        oldest_s, shown_s = self._time.now_s() - KEPT_S, self._time.shown_s
        spans = [span for span in self._spans if span.to_s is None or span.to_s > oldest_s]
        return {
            "kept_s": KEPT_S,
            "since": round(shown_s(self._since_s)),
            "spans": [self._shown(span) for span in spans],
            "marks": [{**mark, "at": shown_s(mark["at"])} for mark in self._marks if mark["at"] > oldest_s],
        }

    def _shown(self, span: Span) -> dict[str, Any]:
        to_s = None if span.to_s is None else self._time.shown_s(span.to_s)
        return {"card": span.card, "model": span.model, "from": self._time.shown_s(span.from_s), "to": to_s}
