"""What was loaded on which card over the last hour, and the switches and spills between: the dashboard's timeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from router.telemetry import Decided, Event, Finished, Spilled, Switched

KEPT_S = 3600.0
MAX_SPANS, MAX_MARKS = 500, 200
"""The most spans and marks that are kept; with more the oldest are dropped."""


@dataclass(slots=True)
class Span:
    """One model on one card from `from_s` to `to_s` (Unix time; None = still loaded)."""

    card: int
    model: str
    from_s: float
    to_s: float | None = None

    def end(self, at_s: float) -> None:
        """Record that it was unloaded."""
        self.to_s = at_s


class Timeline:
    """Keeps spans and marks of the last hour. As a telemetry hook it notes switches; `observe` notes what is loaded."""

    def __init__(self, unix_now: Callable[[], float]) -> None:
        self._unix_now = unix_now
        self._since_s = round(unix_now())
        self._open: dict[tuple[int, str], Span] = {}
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)

    def on(self, event: Event) -> None:
        """Note the end of a switch, or a spill."""
        if isinstance(event, Switched) and event.phase != "started":
            facts = {"kind": f"switch {event.phase}", "model": event.model, "evicted": list(event.evicted)}
            self._marks.append({"at": self._unix_now(), **facts, "took_s": event.duration_s, "error": event.error})
        elif isinstance(event, Spilled):
            self._marks.append({"at": self._unix_now(), "kind": "spill", "model": event.model})

    def on_requests(self, _decided: Sequence[Decided], _finished: Sequence[Finished]) -> None:
        """Ignore the events of requests: a call per batch instead of one per event."""

    def observe(self, loaded: Iterable[tuple[int, str]]) -> None:
        """Note which models are loaded now, as pairs of card and name."""
        now_s, current = self._unix_now(), set(loaded)
        for key in [key for key in self._open if key not in current]:
            self._open.pop(key).end(now_s)
        for key in current - self._open.keys():
            span = self._open[key] = Span(*key, now_s)
            self._spans.append(span)

    def as_data(self) -> dict[str, Any]:
        """Return spans and marks of the last hour, oldest first; times are Unix seconds."""
        oldest_s = self._unix_now() - KEPT_S
        spans = [span for span in self._spans if span.to_s is None or span.to_s > oldest_s]
        return {
            "kept_s": KEPT_S,
            "since": self._since_s,
            "spans": [{"card": s.card, "model": s.model, "from": s.from_s, "to": s.to_s} for s in spans],
            "marks": [mark for mark in self._marks if mark["at"] > oldest_s],
        }
