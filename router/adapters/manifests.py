"""Keeps apart, on one Ollama, what looks a model's name up and what creates or deletes manifests.

To find a name Ollama lists all manifests and reads them one by one. If one vanishes in between, the whole look-up
fails, whatever model it was for (docs/ollama.md, "Failures"). So changes are made one at a time, and none while a load
or an unload may be at its look-up; a load that comes meanwhile waits for the change, which takes
milliseconds, but not for one that hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

LOOK_UP_S = 0.5
"""A request has found its model in this time, however long its load takes then."""

POLLS = 10
"""Times that a change looks, within `LOOK_UP_S`, whether the look-ups are over."""


class Manifests:
    """The order of look-ups and changes on one Ollama."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._looking_until_s: dict[object, float] = {}
        self._now = asyncio.get_running_loop().time

    @asynccontextmanager
    async def looking_up(self) -> AsyncIterator[None]:
        """Wait for the change under way; changes wait until the look-up is over, `LOOK_UP_S` or the block's end.

        A change that hangs is waited for no longer than `LOOK_UP_S` either: a look-up that fails is made again.
        """
        key = object()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_UP_S), self._turn:
                self._looking_until_s[key] = self._now() + LOOK_UP_S
        try:
            yield
        finally:
            self._looking_until_s.pop(key, None)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Wait for the other changes and the look-ups; new look-ups wait until the block has ended."""
        async with self._turn:
            for _ in range(POLLS + 1):  # a look-up that ends earlier ends the wait earlier
                if max(self._looking_until_s.values(), default=0.0) <= self._now():
                    break
                await asyncio.sleep(LOOK_UP_S / POLLS)
            yield
