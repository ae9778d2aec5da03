"""`GET /router/events`: the dashboard's data as server-sent events.

One task builds the data while somebody watches, and encodes it once for all viewers. A viewer gets the newest state
whenever it can take one: there is no queue per viewer, so a slow one skips states and holds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

ALIVE_S = 15.0
"""A viewer that has heard nothing for this long gets a comment, so that both ends notice a dead connection."""

DECISIONS_SHOWN = 60


class Feed:
    """Publishes `board()` and `decisions()` every `every_s` seconds if they have changed."""

    def __init__(
        self,
        board: Callable[[], dict[str, Any]],
        decisions: Callable[[], list[dict[str, Any]]],
        every_s: float = 1.0,
    ) -> None:
        self._sources: dict[str, Callable[[], Any]] = {"board": board, "decisions": decisions}
        self._every_s = every_s
        self._latest: dict[str, tuple[int, bytes]] = dict.fromkeys(self._sources, (0, b""))
        self._changed = asyncio.Condition()
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """The number of viewers."""
        return self._viewers

    @property
    def is_watching(self) -> bool:
        """True while the data are built, which is while somebody watches."""
        return self._task is not None

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the latest events, and then each newer one, until the viewer leaves."""
        self._viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="dashboard")
        seen = dict.fromkeys(self._sources, 0)
        try:
            yield b": ollama-router\n\n"
            while True:
                for name, (number, event) in self._latest.items():
                    if number > seen[name]:
                        seen[name] = number
                        yield event
                if not await self._is_newer(seen):
                    yield b": alive\n\n"
        finally:
            self._viewers -= 1

    async def _is_newer(self, seen: dict[str, int]) -> bool:
        """Wait for an event that was not seen; return False if none came within `ALIVE_S`."""
        try:
            async with asyncio.timeout(ALIVE_S), self._changed:
                await self._changed.wait_for(lambda: any(self._latest[name][0] > seen[name] for name in seen))
        except TimeoutError:
            return False
        return True

    async def _watch(self) -> None:
        """Publish until nobody watches. A state that cannot be built is said in its place, and tried again."""
        try:
            while self._viewers:
                await self._publish()
                await asyncio.sleep(self._every_s)
        finally:
            self._task = None

    async def _publish(self) -> None:
        for name, source in self._sources.items():
            try:
                body = msgspec.json.encode(source(), enc_hook=str)
            except Exception as error:  # the page must not go blank because of one bad value
                body = msgspec.json.encode({"error": repr(error)})
            event = b"event: %b\ndata: %b\n\n" % (name.encode(), body)
            number, latest = self._latest[name]
            if event != latest:
                self._latest[name] = number + 1, event
                async with self._changed:
                    self._changed.notify_all()

    async def aclose(self) -> None:
        """Stop the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
