"""The scheduler's second loop: ends of requests, expired timers, unloads.

It blocks while it waits for memory to return after an unload: idle runners count as busy during that time.
"""

from __future__ import annotations

import asyncio
import math

from ollama_simulator.scheduler.discovery import Discovery
from ollama_simulator.scheduler.loading import Events
from ollama_simulator.scheduler.runner import Runner

RETRY_S = 0.01
"""Delay until an expired runner that is busy is checked again."""


class Endings:
    """The loop and its queue. Every unloaded runner enters `unloads` after the wait for its memory."""

    def __init__(
        self, loaded: dict[str, Runner], lock: asyncio.Lock, discovery: Discovery, wake: asyncio.Event, emit: Events
    ) -> None:
        self.unloads: asyncio.Queue[Runner] = asyncio.Queue()
        self._loaded, self._lock, self._discovery, self._wake, self._emit = loaded, lock, discovery, wake, emit
        self._events: asyncio.Queue[tuple[bool, Runner]] = asyncio.Queue()

    def finished(self, runner: Runner) -> None:
        """Report the end of a request on `runner`."""
        self._events.put_nowait((True, runner))

    def mark(self, runner: Runner) -> None:
        """Mark `runner` to be unloaded once it is idle."""
        runner.stop_timer()
        runner.keep_alive_s = 0.0
        if runner.references <= 0:
            self._events.put_nowait((False, runner))

    def mark_all(self) -> list[Runner]:
        """Mark every runner and return them. Ollama does so after an OOM at run time."""
        runners = list(self._loaded.values())
        for runner in runners:
            self.mark(runner)
        return runners

    async def serve(self) -> None:
        """Run the loop."""
        while True:
            is_end, runner = await self._events.get()
            if is_end:
                self._end_request(runner)
            else:
                await self._expired(runner)

    def _end_request(self, ended: Runner) -> None:
        """Count the end on the runner that has the model now, as Ollama does."""
        runner = self._loaded.get(ended.model.blob)
        if runner is None:
            return
        runner.references = max(0, runner.references - 1)
        if runner.references:
            return
        runner.stop_timer()
        if runner.keep_alive_s <= 0:
            self._events.put_nowait((False, runner))
            return
        loop = asyncio.get_running_loop()
        runner.expires_at_s = loop.time() + runner.keep_alive_s
        if runner.keep_alive_s < math.inf:
            runner.timer = loop.call_later(runner.keep_alive_s, self._events.put_nowait, (False, runner))

    async def _expired(self, runner: Runner) -> None:
        if runner.references > 0:
            asyncio.get_running_loop().call_later(RETRY_S, self._events.put_nowait, (False, runner))
            return
        async with self._lock:
            if self._loaded.get(runner.model.blob) is not runner:
                runner.kill()
                return
            order = self._discovery.walk(list(self._loaded.values()))
            before = await self._discovery.baseline(order) if runner.cards else None
            runner.stop_timer()
            runner.kill()
            del self._loaded[runner.model.blob]
        self._emit("unloaded", runner.model.name, "")
        if before is not None:
            await self._discovery.recovered(
                before, runner.size_vram_bytes, [other for other in order if other is not runner]
            )
        self.unloads.put_nowait(runner)
        self._wake.set()
