"""The routers that follow each other in one process: a reload starts the next one, then the one before ends.

Both listen on the same sockets for a moment, so that no connection is refused. A configuration that is broken, or a
start that fails, is logged, and what serves goes on serving.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable

from router.app import NO_SOCKETS, Running, Sockets, running
from router.config import Config
from router.core.teams.quotas import MemoryQuotas, Quotas
from router.errors import RouterError
from router.telemetry import LogHook, Notified

logger = logging.getLogger("router.cli")


class Generation:
    """One router, in a task of its own."""

    def __init__(self, config: Config, log: LogHook, sockets: Sockets, quotas: Quotas, *, is_successor: bool) -> None:
        self.config = config
        self.service: Running | None = None
        self._log, self._quotas = log, quotas
        self._is_started, self._is_over = asyncio.Event(), asyncio.Event()
        work = self._run(sockets, is_successor=is_successor)
        self.task = asyncio.get_running_loop().create_task(work)

    async def _run(self, sockets: Sockets, *, is_successor: bool) -> None:
        try:
            async with running(
                self.config, hooks=[self._log], sockets=sockets, is_successor=is_successor, quotas=self._quotas
            ) as self.service:
                self._is_started.set()
                await self._is_over.wait()
                self.service.grace_s = self.config.timeouts.shutdown_s
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

    def end(self) -> None:
        """Let it end the requests under way; a start that waits for Ollama is cancelled."""
        self._is_over.set()
        if not self._is_started.is_set():
            self.task.cancel()

    def hasten(self) -> None:
        """End the time that requests under way have."""
        if self.service is not None:
            self.service.hasten()


class Generations:
    """`load` reads the configuration again, `log` makes the log of a router with a configuration.

    `on_start` is called with each router that serves, `on_settled` with the one that does after the start, and after
    each reload, whether it succeeded or not.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        log: Callable[[Config], LogHook],
        on_start: Callable[[Running], None],
        on_settled: Callable[[Running], None] = lambda _service: None,
    ) -> None:
        self._load = load
        self._log = log
        self._on_start = on_start
        self._quotas = MemoryQuotas(asyncio.get_running_loop().time, time.time)  # a reload refills nothing
        self._on_settled = on_settled
        self._alive: list[Generation] = []  # the last one serves, those before it end
        self._is_stopping = False
        self._wants_reload = False
        self._has_news = asyncio.Event()

    def stop(self) -> None:
        """End all requests within their grace period; called again, at once."""
        if self._is_stopping:
            for one in self._alive:
                one.hasten()
        self._is_stopping = True
        self._has_news.set()
        for one in self._alive:
            one.end()

    def reload(self) -> None:
        """Read the configuration again, and serve it."""
        self._wants_reload = True
        self._has_news.set()

    async def run(self, config: Config, sockets: Sockets = NO_SOCKETS) -> None:
        """Serve until `stop`. Raises what the first start raises."""
        try:
            current = self._begin(config, sockets)
            self._on_start(await current.started())
            self._on_settled(await current.started())
            while not self._is_stopping:
                await self._has_news.wait()
                self._has_news.clear()
                if self._wants_reload and not self._is_stopping:
                    self._wants_reload = False
                    current = await self._succeed(current)
                    self._on_settled(await current.started())
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
        finally:
            self._is_stopping = True
            for one in tuple(self._alive):
                one.end()
            await asyncio.gather(*(one.task for one in self._alive), return_exceptions=True)

    def _begin(self, config: Config, sockets: Sockets, *, is_successor: bool = False) -> Generation:
        one = Generation(config, self._log(config), sockets, self._quotas, is_successor=is_successor)
        self._alive.append(one)
        one.task.add_done_callback(lambda _: self._alive.remove(one))
        return one

    async def _succeed(self, current: Generation) -> Generation:
        """Start the next router, and let the current one end; return the one that serves."""
        service = await current.started()
        log = self._log(current.config)
        sockets, config = NO_SOCKETS, current.config
        try:
            config = self._load()
            sockets = service.sockets_for(config)
            successor = self._begin(config, sockets, is_successor=True)
            self._on_start(await successor.started())
        except Exception as error:  # a bug as well: what serves must not end by a reload
            if not isinstance(error, (RouterError, OSError)):
                logger.exception("the reload failed")
            for sock in (*sockets.clients, *sockets.admin):
                sock.close()
            why = _why(error, current.config, config)
            log.on(Notified(f"the configuration was not reloaded, the one before serves on: {why}", level="error"))
            return current
        service.hand_over_to(config)
        current.end()
        log.on(Notified("the configuration was reloaded"))
        return successor


def _why(error: Exception, before: Config, after: Config) -> str:
    """Return why a reload failed; for an address that cannot be had its key."""
    moved = [key for key in ("listen", "admin") if getattr(before, key) != getattr(after, key)]
    if not isinstance(error, OSError) or not moved:
        return str(error)
    own = " (by this router, too: only a restart changes the host and keeps the port)"
    taken = own if error.errno == errno.EADDRINUSE else ""
    return f"{' or '.join(moved)} cannot be changed to an address that cannot be had{taken}: {error}"
