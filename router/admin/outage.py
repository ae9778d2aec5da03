"""Since when Ollama does not answer, so that its last state is shown as an old one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from router.telemetry import Decided, Event, Finished, UpstreamDown, UpstreamUp


class Outage:
    """A hook that keeps the time at which Ollama stopped answering; `unix_now` is the wall clock."""

    def __init__(self, unix_now: Callable[[], float]) -> None:
        self._unix_now = unix_now
        self.since: str | None = None

    def on_requests(self, _decided: Sequence[Decided], _finished: Sequence[Finished]) -> None:
        """Ignore the events of requests: a call per batch instead of one per event."""

    def on(self, event: Event) -> None:
        if isinstance(event, UpstreamUp):
            self.since = None
        elif isinstance(event, UpstreamDown):
            self.since = self.since or datetime.fromtimestamp(self._unix_now(), UTC).isoformat(timespec="seconds")
