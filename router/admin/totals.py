"""What the router has done since it started, and per minute of the last hour: the figures of the dashboard."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from router.telemetry import Decided, Event, Finished, Spilled, SteadyTime, Switched

MINUTE_S, MINUTES = 60, 60
AVOIDED_CAUSES = frozenset(("too_big", "spilled"))
"""The first verdict of a request that Ollama itself would have run partly on the CPU."""

MOST_UNDER_WAY = 4096
"""Decisions that are kept until their requests end."""

_FAILED = frozenset(("upstream_error", "failed"))
_OF_REQUESTS = ("requests", "spills_avoided", "substituted", "below_best", "refused", "failed", "tokens")


@dataclass(slots=True)
class Counts:
    """Numbers of events; a request counts when it ends. `spills_avoided` are requests that Ollama alone would have let
    spill: the model that they ask for does not fit. `substituted` got a smaller variant than the first of their chain,
    `below_best` a smaller one than would have fitted. `tokens` are generated ones."""

    requests: int = 0
    spills_avoided: int = 0
    substituted: int = 0
    below_best: int = 0
    refused: int = 0
    failed: int = 0
    switches: int = 0
    spills: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, decided: Sequence[Decided], finished: Sequence[Finished]) -> Counts:
        """Return the counts of requests that have ended, and of the notable decisions on them."""
        counts = cls(requests=len(finished), tokens=sum([event.tokens_out or 0 for event in finished]))
        counts.below_best = sum([event.below_best != "" for event in decided])
        for event in [event for event in decided if event.outcome != "exact"]:
            if event.outcome in ("fallback", "rejected"):
                counts.spills_avoided += event.cause in AVOIDED_CAUSES
                counts.substituted += event.outcome == "fallback"
                counts.refused += event.outcome == "rejected"
        counts.failed = sum([event.outcome in _FAILED for event in finished])
        return counts

    def add(self, other: Counts) -> None:
        """Add other counts of requests."""
        for name in _OF_REQUESTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def changed(self, event: Switched | Spilled) -> None:
        """Count a change of what is loaded."""
        self.spills += isinstance(event, Spilled)
        self.switches += isinstance(event, Switched) and event.phase == "finished"


class Totals:
    """A telemetry hook. Minutes are those of `time`, so that each comes once, and after the one before it."""

    def __init__(self, time: SteadyTime) -> None:
        self._time = time
        # The last decision on each request that has not ended, unless it is plain.
        self._notable: dict[str, Decided] = {}
        self._all = Counts()
        self._minutes: deque[tuple[int, Counts]] = deque(maxlen=MINUTES)

    def on(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Decided):
            self.on_requests((event,), ())
        elif isinstance(event, Finished):
            self.on_requests((), (event,))
        elif isinstance(event, (Switched, Spilled)):
            for counts in self._current():
                counts.changed(event)

    def on_requests(self, decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Count the requests that have ended, each with what was decided on it: no figure is ahead of another."""
        notable = self._notable
        for event in decided:
            if event.outcome != "exact" or event.below_best:
                notable[event.request_id] = event
            elif notable:  # it was decided before, perhaps otherwise
                notable.pop(event.request_id, None)
        ended = [notable.pop(event.request_id, None) for event in finished] if notable else []
        while len(notable) > MOST_UNDER_WAY:  # of requests whose ends are not reported
            del notable[next(iter(notable))]
        new = Counts.of([event for event in ended if event is not None], finished)
        for counts in self._current():
            counts.add(new)

    def _current(self) -> tuple[Counts, Counts]:
        minute = int(self._time.now_s()) // MINUTE_S
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counts()))
        return self._all, self._minutes[-1][1]

    def since_start(self) -> dict[str, int]:
        """Return all counts since the start."""
        return asdict(self._all)

    def by_minute(self) -> list[dict[str, int]]:
        """Return the counts of each minute of the last hour in which something happened; `at` is its begin (Unix)."""
        oldest = int(self._time.now_s()) // MINUTE_S - MINUTES
        kept = [(minute * MINUTE_S, counts) for minute, counts in self._minutes if minute > oldest]
        return [{"at": round(self._time.shown_s(at_s)), **asdict(counts)} for at_s, counts in kept]
