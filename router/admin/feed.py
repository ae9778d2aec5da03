"""`GET /router/events`: the dashboard's data as server-sent events.

One task builds the data while somebody watches, and encodes it once for all viewers. A viewer gets the newest state
whenever it can take one: there is no queue per viewer, so a slow one skips states and holds nothing. What takes long to
build is built less often, so that dashboards never cost more than a small part of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec

ALIVE_S = 15.0
"""A viewer that has heard nothing for this long gets a comment, so that both ends notice a dead connection."""

MOST_OF_LOOP = 0.02
"""The part of the loop's time that building the data may take, sending them not included."""


async def _nothing() -> None:
    """Prepare nothing."""


class Feed:
    """Publishes `board()`, `decisions()` and `teams()` every `every_s` seconds if they have changed.

    `prepare` reads what they need that is not in memory; `time_s` measures what building them takes.
    """

    def __init__(
        self,
        board: Callable[[], dict[str, Any]],
        decisions: Callable[[], list[dict[str, Any]]],
        teams: Callable[[], dict[str, Any]] = dict,
        *,
        prepare: Callable[[], Coroutine[Any, Any, None]] = _nothing,
        every_s: float = 1.0,
        time_s: Callable[[], float] = float,
    ) -> None:
        self._sources: dict[str, Callable[[], Any]] = {
            "board": board,
            "decisions": decisions,
            "teams": teams,
        }
        self._every_s, self._time_s, self._prepare = every_s, time_s, prepare
        self._latest: dict[str, tuple[int, bytes]] = dict.fromkeys(self._sources, (0, b""))
        self._changed = asyncio.Condition()
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._preparing: asyncio.Future[None] | None = None

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
        """Publish until nobody watches."""
        try:
            while self._viewers:
                await self._prepared()
                began_s = self._time_s()
                is_new = self._build()
                took_s = self._time_s() - began_s
                if is_new:
                    async with self._changed:
                        self._changed.notify_all()
                await asyncio.sleep(max(self._every_s, took_s / MOST_OF_LOOP))
        finally:
            self._task = None
            if self._preparing is not None:
                self._preparing.cancel()
                self._preparing = None

    async def _prepared(self) -> None:
        """Prepare, but wait no longer than for the next state: without it the rest is shown nevertheless."""
        if self._preparing is None:
            self._preparing = asyncio.ensure_future(self._prepare())
        done, _ = await asyncio.wait((self._preparing,), timeout=self._every_s)
        if done:
            self._preparing = None
            with suppress(Exception, asyncio.CancelledError):
                done.pop().result()

    def _build(self) -> bool:
        """Build and encode all events; return True if one has changed.

        A state that cannot be built is said in its place, and tried again.
        """
        is_new = False
        for name, source in self._sources.items():
            try:
                body = msgspec.json.encode(source(), enc_hook=str)
            except Exception as error:  # the page must not go blank because of one bad value
                body = msgspec.json.encode({"error": repr(error)})
            event = b"event: %b\ndata: %b\n\n" % (name.encode(), body)
            number, latest = self._latest[name]
            if event != latest:
                self._latest[name] = number + 1, event
                is_new = True
        return is_new

    async def aclose(self) -> None:
        """Stop the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
