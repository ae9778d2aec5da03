"""One event, many hooks. A hook that fails is counted and never harms a request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from router.telemetry.events import Event


class Hook(Protocol):
    """Something that is told of every event, at once and on the loop: it must not block."""

    def on(self, event: Event) -> None: ...


class Telemetry:
    """Hands each event to every hook, in their order."""

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._hooks = tuple(hooks)
        self.failures = 0

    def emit(self, event: Event) -> None:
        """Tell every hook. Never raises."""
        for hook in self._hooks:
            try:
                hook.on(event)
            except Exception:
                self.failures += 1
