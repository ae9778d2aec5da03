"""The routers that follow each other in one process, and what a reload does to them.

A configuration of which only rules differ is put in force in the router that runs. Otherwise the next router starts:
both listen on the same sockets for a moment, so that no connection is refused, and the one before ends when its
requests have. A configuration that is broken, or a start that fails, is logged, and what serves goes on serving.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

from router.adapters.ed25519 import verifier
from router.app import NO_SOCKETS, Running, Sockets
from router.cli.generation import Generation
from router.config import Config, Loaded, differences, prepare, summary, watched_files, way_to
from router.core.teams.memory_quotas import MemoryQuotas
from router.errors import ReloadRefused, RouterError
from router.telemetry import LogHook, Notified

logger = logging.getLogger("router.cli")

RELOADED = "the configuration was reloaded"
MOST_ENDING = 16
"""Most routers that still end requests after reloads; beyond them the oldest one has `timeouts.shutdown_s` left."""

Outcome = dict[str, object]


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
        self._asking: list[asyncio.Future[Outcome]] = []  # for the next reload
        self._is_asked = False  # for that one, whether or not something has changed
        self._has_news = asyncio.Event()
        self._serial = 0

    def files_of(self, file: Path | None) -> Callable[[], list[Path]]:
        """Return what finds the files on which the configuration in force depends; `file` is its own."""

        def files() -> list[Path]:
            config = self._alive[-1].loaded.config if self._alive else None
            return list(watched_files(config, file)) if config is not None and config.watch_files else []

        return files

    def stop(self) -> None:
        """End all requests within their grace period; called again, at once."""
        if self._is_stopping:
            for one in self._alive:
                one.hasten()
        self._is_stopping = True
        self._has_news.set()
        for one in self._alive:
            one.end(one.loaded.config.timeouts.shutdown_s)

    def reload(self, *, if_changed: bool = False) -> asyncio.Future[Outcome]:
        """Read the configuration again, and put it in force; return what comes of it, which raises ReloadRefused.

        With `if_changed` nothing is done, and nothing logged, if it is the one in force.
        """
        self._is_asked = self._is_asked or not if_changed
        asking: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        asking.add_done_callback(_look_at_error)
        self._asking.append(asking)
        self._has_news.set()
        return asking

    async def reloaded(self) -> Outcome:
        """Reload, and return what came of it. Raise ReloadRefused."""
        return await asyncio.shield(self.reload())

    async def run(self, config: Config, sockets: Sockets = NO_SOCKETS) -> None:
        """Serve until `stop`. Raises what the first start raises."""
        try:
            current = self._begin(await self._prepared(config), sockets)
            self._serial += 1
            service = await current.started()
            for report in (self._on_start, self._on_settled):
                if not self._is_stopping:  # else it may have no address any more
                    report(service)
            while not self._is_stopping:
                await self._has_news.wait()
                self._has_news.clear()
                asking, self._asking = self._asking, []
                if asking and not self._is_stopping:
                    current = await self._answer(current, asking)
                    service = await current.started()
                    if not self._is_stopping:
                        self._on_settled(service)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
        finally:
            self._is_stopping = True
            for late in self._asking:
                late.cancel()
            for one in tuple(self._alive):
                one.end(one.loaded.config.timeouts.shutdown_s)
            await asyncio.gather(*(one.task for one in self._alive), return_exceptions=True)

    async def _prepared(self, config: Config) -> Loaded:
        return await asyncio.to_thread(prepare, config, self._serial + 1, verifier())

    def _begin(self, loaded: Loaded, sockets: Sockets, *, is_successor: bool = False) -> Generation:
        log = self._log(loaded.config)
        one = Generation(loaded, log, sockets, self._quotas, is_successor=is_successor, reload=self.reloaded)
        self._alive.append(one)
        one.task.add_done_callback(lambda _: self._alive.remove(one))
        return one

    async def _answer(self, current: Generation, asking: list[asyncio.Future[Outcome]]) -> Generation:
        """Reload for those who ask; return the router that serves."""
        is_asked, self._is_asked = self._is_asked, False
        service = await current.started()
        before, loaded = current.loaded, current.loaded
        log = self._log(before.config)
        try:
            loaded = await self._prepared(await asyncio.to_thread(self._load))
            changed = await asyncio.to_thread(differences, before.config, loaded.config)
            if not (is_asked or changed or before.outside != loaded.outside):
                _settle(asking, _outcome("unchanged", before, changed))
                return current
            is_next = way_to(changed, before, loaded) == "next router"
            successor = await self._succeed(service, loaded) if is_next else None
        except Exception as error:  # a bug as well: what serves must not end by a reload
            if not isinstance(error, (RouterError, OSError)):
                logger.exception("the reload failed")
            why = _why(error, before.config, loaded.config)
            service.router.refuse_reload(why)
            self._is_asked = True  # that a file is as before is news then
            log.on(Notified(f"the configuration was not reloaded, the one before serves on: {why}", level="error"))
            _settle(asking, ReloadRefused(why))
            return current
        self._serial += 1
        if successor is None:
            current.take_over(loaded)
        has_new_files = before.outside != loaded.outside
        what = summary(before.config, loaded.config, changed, has_new_files=has_new_files)
        log.on(Notified(f"{RELOADED}: {what}"))
        _settle(asking, _outcome("next router" if is_next else "in place", loaded, changed))
        if successor is None:
            return current
        service.hand_over_to(loaded.config)
        current.end()
        for oldest in self._alive[: -MOST_ENDING - 1]:
            oldest.end(oldest.loaded.config.timeouts.shutdown_s)
        return successor

    async def _succeed(self, service: Running, loaded: Loaded) -> Generation:
        """Start the next router. Raises what its start raises; then it has left nothing."""
        if self._is_stopping:  # since its files were read
            raise ReloadRefused("the router is shutting down")
        sockets = service.sockets_for(loaded.config)
        try:
            successor = self._begin(loaded, sockets, is_successor=True)
            started = await successor.started()
            if not self._is_stopping:
                self._on_start(started)
        except BaseException:
            for sock in (*sockets.clients, *sockets.admin):
                sock.close()
            raise
        return successor


def _why(error: Exception, before: Config, after: Config) -> str:
    """Return why a reload failed; for an address that cannot be had its key."""
    moved = [key for key in ("listen", "admin") if getattr(before, key) != getattr(after, key)]
    if not isinstance(error, OSError) or not moved:
        return str(error)
    own = " (by this router, too: only a restart changes the host and keeps the port)"
    taken = own if error.errno == errno.EADDRINUSE else ""
    return f"{' or '.join(moved)} cannot be changed to an address that cannot be had{taken}: {error}"


def _outcome(by: str, loaded: Loaded, changed: list[str]) -> Outcome:
    """Return what a reload has come to, as `POST /router/reload` shows it."""
    return {"by": by, "serial": loaded.book.serial, "digest": loaded.book.digest, "changed": changed}


def _settle(asking: list[asyncio.Future[Outcome]], outcome: Outcome | ReloadRefused) -> None:
    for one in asking:
        if one.done():  # whoever asked has left
            continue
        if isinstance(outcome, ReloadRefused):
            one.set_exception(outcome)
        else:
            one.set_result(outcome)


def _look_at_error(asking: asyncio.Future[Outcome]) -> None:
    """Mark the error of a reload as seen: it is in the log, and nobody may wait for it."""
    if not asking.cancelled():
        asking.exception()
