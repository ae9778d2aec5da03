"""Since when Ollama does not answer, so that its last state is shown as an old one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from router.telemetry import Decided, Event, Finished, SteadyTime, UpstreamDown, UpstreamUp


class Outage:
    """A hook that keeps the `time` at which Ollama stopped answering."""

    def __init__(self, time: SteadyTime) -> None:
        self._time = time
        self._since_s: float | None = None

    @property
    def since(self) -> str | None:
        """Return that time in ISO 8601, by the wall clock as it is set now; None while Ollama answers."""
        if self._since_s is None:
            return None
        return datetime.fromtimestamp(self._time.shown_s(self._since_s), UTC).isoformat(timespec="seconds")

    def on_requests(self, _decided: Sequence[Decided], _finished: Sequence[Finished]) -> None:
        """Ignore the events of requests: a call per batch instead of one per event."""

    def on(self, event: Event) -> None:
        if isinstance(event, UpstreamUp):
            self._since_s = None
        elif isinstance(event, UpstreamDown) and self._since_s is None:
            self._since_s = self._time.now_s()
