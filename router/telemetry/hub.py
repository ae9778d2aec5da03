"""Passes each event to all hooks. A hook that raises is counted, and fails no request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from router.telemetry.events import Decided, Event, Finished

BATCH_DELAY_S, MAX_BATCH = 0.01, 256
"""Batching limits for per-request events: maximum delay, most events of a kind."""

Receiver = Callable[[Sequence[Decided], Sequence[Finished]], None]


class Hook(Protocol):
    """A receiver of events. It is called on the event loop, and must not block.

    A hook that also has `on_requests(decided, finished)` gets a batch of requests' events in one call.
    """

    def on(self, event: Event) -> None: ...


class Telemetry:
    """Passes each event to every hook, in the order of the hooks.

    With `later` (a loop's `call_later`) the events of requests are passed on in batches, so that no answer waits for
    its log line. Call `flush` before reading what a hook has collected.
    """

    def __init__(
        self, hooks: Iterable[Hook] = (), *, later: Callable[[float, Callable[[], None]], object] | None = None
    ) -> None:
        self._hooks = tuple(hooks)
        self._receivers = tuple(map(self._receiver_of, self._hooks))
        self._later = later
        self._decided: list[Decided] = []
        self._finished: list[Finished] = []
        self._is_due = False  # whether they will be passed on
        self.failures = 0

    def emit(self, event: Event) -> None:
        """Pass `event` to every hook, now or with the current batch. Never raises."""
        kind = type(event)
        if self._later is None or not (kind is Finished or kind is Decided):
            self.flush()  # first, so that hooks see all events in order
            self._deliver(event)
            return
        batch: list[Any] = self._finished if kind is Finished else self._decided
        batch.append(event)
        if not self._is_due:
            self._is_due = True
            self._later(BATCH_DELAY_S, self.flush)
        elif len(batch) >= MAX_BATCH:
            self.flush()

    def of(self, backend: str) -> Telemetry:
        """Return what the parts of one backend emit to: it names the backend in their events."""
        return _OfBackend(self, backend)

    def flush(self) -> None:
        """Pass on the current batch: the decisions, then the ends."""
        decided, finished, self._decided, self._finished = self._decided, self._finished, [], []
        self._is_due = False
        for receive in self._receivers if decided or finished else ():
            try:
                receive(decided, finished)
            except Exception:
                self.failures += 1

    def _receiver_of(self, hook: Hook) -> Receiver:
        """Return what passes a batch to `hook`."""

        def receive(decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
            events: list[Event] = [*decided, *finished]
            for event in events:
                self._deliver_to(hook, event)

        found: Receiver = getattr(hook, "on_requests", receive)
        return found

    def _deliver(self, event: Event) -> None:
        for hook in self._hooks:
            self._deliver_to(hook, event)

    def _deliver_to(self, hook: Hook, event: Event) -> None:
        try:
            hook.on(event)
        except Exception:
            self.failures += 1


class _OfBackend(Telemetry):
    """Passes events on to the telemetry of all, with the name of a backend where they have none."""

    def __init__(self, whole: Telemetry, backend: str) -> None:
        super().__init__()
        self._whole, self._backend = whole, backend

    def emit(self, event: Event) -> None:
        if not getattr(event, "backend", "named"):
            event = msgspec.structs.replace(event, backend=self._backend)
        self._whole.emit(event)

    def flush(self) -> None:
        self._whole.flush()
