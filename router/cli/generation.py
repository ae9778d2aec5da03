"""One of the routers that follow each other in a process."""

from __future__ import annotations

import asyncio
import math

from router.admin.actions import Reload
from router.app import Running, Sockets, running
from router.config import Loaded
from router.core.teams.memory_quotas import MemoryQuotas
from router.telemetry import LogHook


class Generation:
    """One router, in a task of its own. `reload` is what its admin page does."""

    def __init__(
        self,
        loaded: Loaded,
        log: LogHook,
        sockets: Sockets,
        quotas: MemoryQuotas,
        *,
        is_successor: bool,
        reload: Reload,
    ) -> None:
        self.loaded = loaded
        self.service: Running | None = None
        self._log, self._quotas = log, quotas
        self._reload = reload
        self._grace_s = math.inf
        self._is_started, self._is_over = asyncio.Event(), asyncio.Event()
        work = self._run(sockets, is_successor=is_successor)
        self.task = asyncio.get_running_loop().create_task(work)

    async def _run(self, sockets: Sockets, *, is_successor: bool) -> None:
        try:
            async with running(
                self.loaded.config,
                hooks=[self._log],
                sockets=sockets,
                is_successor=is_successor,
                loaded=self.loaded,
                reload=self._reload,
                quotas=self._quotas,
            ) as self.service:
                self._is_started.set()
                await self._is_over.wait()
                self.service.grace_s = self._grace_s
        finally:
            self._log.flush()

    async def started(self) -> Running:
        """Return the service when it serves. Raises what the start has raised; CancelledError if it was cancelled."""
        waiting = asyncio.ensure_future(self._is_started.wait())
        await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.service is None:
            self.task.result()
        assert self.service is not None
        return self.service

    def take_over(self, loaded: Loaded) -> None:
        """Put a configuration in force of which only rules differ."""
        assert self.service is not None
        self.loaded = loaded
        self.service.take_over(loaded)

    def end(self, grace_s: float = math.inf) -> None:
        """Let it end the requests under way, within `grace_s`; a start that waits for Ollama is cancelled.

        Called again with a shorter time, that counts from then.
        """
        is_ending = self._is_over.is_set()
        if not is_ending:
            self._grace_s = grace_s
            self._is_over.set()
        elif grace_s < self._grace_s:
            self._grace_s = grace_s
            asyncio.get_running_loop().call_later(grace_s, self.hasten)
        if not self._is_started.is_set():
            self.task.cancel()

    def hasten(self) -> None:
        """End the time that requests under way have."""
        if self.service is not None:
            self.service.hasten()
