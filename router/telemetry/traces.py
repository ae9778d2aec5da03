"""Collects the events of requests that are traced, and has their spans made and sent by a thread of its own.

Nothing waits for it: the loop puts events into a bounded queue, and the oldest are dropped if the collector is slow.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from router.telemetry.events import Decided, Event, Finished, Switched
from router.telemetry.spans import Noted, Span, SpanMaker

MOST_AT_ONCE = 1024
"""Events whose spans are sent together."""


class Exporter(Protocol):
    """Sends spans; called by one thread."""

    def send(self, spans: Sequence[Span]) -> str:
        """Send them; return why they could not be, "" if they were."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class TraceHook:
    """Sends the spans of traced requests and of switches to `exporter` every `every_s` seconds.

    At most `most_waiting` events wait; `lost` counts those that found no room, or could not be sent. `warn` is called,
    by the thread, with a sentence for the operator when sending begins to fail, and when it works again.
    """

    def __init__(
        self,
        exporter: Exporter,
        *,
        most_waiting: int,
        every_s: float,
        warn: Callable[[str], None],
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._exporter, self._every_s, self._warn, self._unix_now = exporter, every_s, warn, unix_now
        self._waiting: deque[Noted] = deque()
        self._most_waiting = most_waiting
        self._decided: dict[str, Decided] = {}  # of requests that have not ended
        self._maker = SpanMaker()
        self._closing = threading.Event()
        self._problem = ""
        self._unsent = 0
        self.lost = 0
        self._thread: threading.Thread | None = None  # from the first event on

    # --- on the loop -------------------------------------------------------------------------------------------

    def on_requests(self, decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Note decisions and ends of requests. This runs for requests that are not sampled, too."""
        noted = self._decided
        noted.update([(event.request_id, event) for event in decided])
        for event in finished:
            found, span = noted.pop(event.request_id, None), event.span
            if span is not None:
                self._put(Noted(self._unix_now(), event, found))
        while len(noted) > self._most_waiting:  # of requests whose ends are not reported
            del noted[next(iter(noted))]

    def on(self, event: Event) -> None:
        """Note an event of which spans are made."""
        if isinstance(event, Decided):
            self.on_requests((event,), ())
        elif isinstance(event, Finished):
            self.on_requests((), (event,))
        elif isinstance(event, Switched) and event.phase != "started":
            self._put(Noted(self._unix_now(), event))

    def _put(self, noted: Noted) -> None:
        self._waiting.append(noted)
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()
        if len(self._waiting) > self._most_waiting:
            self._waiting.popleft()
            self.lost += 1

    # --- in the thread -----------------------------------------------------------------------------------------

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most `timeout_s` seconds. Idempotent."""
        was_closing = self._closing.is_set()
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        elif not was_closing:
            self._exporter.close()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(self._every_s)
            while spans := self._next():
                if why := self._sent(spans):
                    self._failed(why, len(spans))
                    break  # after a pause; what waits meanwhile is bounded
                self._worked()
        self._exporter.close()

    def _next(self) -> list[Span]:
        """Return the spans of the oldest events; [] if none wait."""
        spans: list[Span] = []
        for _ in range(MOST_AT_ONCE):
            try:
                noted = self._waiting.popleft()
            except IndexError:
                break
            try:
                spans += self._maker.spans_of(noted)
            except Exception as error:  # of one event: the thread must go on
                self._failed(repr(error), 1)
        return spans

    def _sent(self, spans: Sequence[Span]) -> str:
        try:
            return self._exporter.send(spans)
        except Exception as error:  # of a library: the thread must go on
            return repr(error)

    def _failed(self, why: str, count: int) -> None:
        self._unsent += count
        self.lost += count
        if why != self._problem:
            self._problem = why
            self._say(f"traces cannot be sent, and are dropped meanwhile: {why}")

    def _worked(self) -> None:
        if self._problem:
            self._say(f"traces are sent again; {self._unsent} spans were dropped")
            self._problem, self._unsent = "", 0

    def _say(self, text: str) -> None:
        with suppress(RuntimeError):  # the loop that would log it has ended
            self._warn(text)
