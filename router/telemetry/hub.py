"""One event, many hooks. A hook that fails is counted and never harms a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from router.telemetry.events import Decided, Event, Finished

HOLD_S, MOST_HELD = 0.01, 256
"""The events of requests are told so late at most, and so many of them at once."""


class Hook(Protocol):
    """Something that gets every event, on the loop: it must not block.

    A hook that also has `on_requests(events)` gets the events of requests that were held back in one call.
    """

    def on(self, event: Event) -> None: ...


class Telemetry:
    """Hands each event to every hook, in their order.

    With `later` (a loop's `call_later`) the events of requests are told together, so that no client waits for what is
    written about it. Whoever reads a hook calls `flush` first.
    """

    def __init__(
        self, hooks: Iterable[Hook] = (), *, later: Callable[[float, Callable[[], None]], object] | None = None
    ) -> None:
        self._hooks = tuple(hooks)
        self._later = later
        self._held: list[Event] = []
        self.failures = 0

    def emit(self, event: Event) -> None:
        """Tell every hook, perhaps in a moment. Never raises."""
        if self._later is not None and (type(event) is Finished or type(event) is Decided):
            self._held.append(event)
            if len(self._held) == 1:
                self._later(HOLD_S, self.flush)
            elif len(self._held) >= MOST_HELD:
                self.flush()
            return
        self.flush()
        self._tell(event)

    def flush(self) -> None:
        """Tell what is held back."""
        held, self._held = self._held, []
        for hook in self._hooks if held else ():
            many = getattr(hook, "on_requests", None)
            try:
                if many is not None:
                    many(held)
                    continue
            except Exception:
                self.failures += 1
                continue
            for event in held:
                self._tell_one(hook, event)

    def _tell(self, event: Event) -> None:
        for hook in self._hooks:
            self._tell_one(hook, event)

    def _tell_one(self, hook: Hook, event: Event) -> None:
        try:
            hook.on(event)
        except Exception:
            self.failures += 1
