"""The composition root: config → backend → dispatcher → edge and admin, started and stopped in this order. No logic."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from router import __version__
from router.adapters.gpu.reading import VramProbe
from router.admin.accounts import Accounts
from router.admin.actions import Actions
from router.admin.board import Board
from router.admin.chat import Chat
from router.admin.feed import Feed
from router.admin.inspector import Inspector
from router.admin.outage import Outage
from router.admin.pages import Parts, admin_app
from router.admin.scrape import Scrape
from router.admin.teams import TeamsPage
from router.admin.timeline import Timeline
from router.admin.totals import Totals
from router.api.edge import Edge
from router.api.limits import Limits
from router.backend.backend import Backend
from router.backend.derived import owner_of
from router.config import Config, Rulebook, effective, rulebook_of
from router.core.teams.quotas import MemoryQuotas, Quotas
from router.http.server.asgi import Asgi
from router.http.server.listener import Listener
from router.http.server.proxies import Proxies
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.directory import Directory
from router.routing.dispatch import Dispatcher
from router.routing.named import NamedModels
from router.routing.ruled import RulesInForce
from router.routing.warmup import Warmup
from router.telemetry import Hook, MetricsHook, Notified, RecentDecisions, Telemetry, watch_loop_lag
from router.wiring import (
    admin_limits,
    admin_lock,
    build_probe,
    build_store,
    edge_settings,
    listener_tls,
    open_doors,
    remind,
    version_warnings,
    warnings,
    wire_limits,
)


class Router:
    """Everything that runs for one configuration, except the listeners."""

    def __init__(
        self,
        config: Config,
        *,
        probe: VramProbe | None,
        telemetry: Telemetry,
        recent: RecentDecisions,
        outage: Outage | None = None,
        accounts: Accounts,
        book: Rulebook | None = None,
    ) -> None:
        name = next(iter(config.backends))
        self.telemetry = telemetry
        self.recent = recent
        self.accounts = accounts
        self.store = build_store(config.store.path, lambda text: telemetry.emit(Notified(text, level="warning")))
        self.backend = Backend(name, config, probe, self.store, telemetry, time.time)
        self.rules = RulesInForce(book or rulebook_of(config))
        chains = Chains(self.rules)
        decisions = Decisions(self.backend, chains, config.defaults)
        self.directory = Directory(self.backend, chains, decisions)
        self.dispatcher = Dispatcher(self.backend, chains, decisions, config.queue.wait_s, telemetry)
        self.warmup = Warmup(self.backend, decisions, chains, self.rules)
        self.named = NamedModels(config, self.backend.world, telemetry)
        self.inspector = Inspector(
            self.backend, self.directory, decisions, telemetry, recent, effective(config), self.named.notes, outage
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._warned_of = ""

    async def start(self) -> None:
        """Read the state of the backend, and start the background tasks. May be cancelled."""
        self.accounts.start()
        await self.backend.start(self._ollama_came)
        self._tasks = [asyncio.create_task(work) for work in (self.warmup.watch(), self.named.watch())]

    def _ollama_came(self) -> None:
        """Warn of an old version, once, and schedule the models to load."""
        version = self.backend.world.version
        if version != self._warned_of:
            self._warned_of = version
            for warning in version_warnings(version):
                self.telemetry.emit(Notified(warning, level="warning"))
        self.warmup.restart()

    async def stop(self, *, keeps_tags: bool = False) -> None:
        """Stop the background tasks and release everything; idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.backend.stop(keeps_tags=keeps_tags)
        await self.store.aclose()
        self.telemetry.flush()
        await self.accounts.stop()

    def stores_up(self) -> dict[str, bool]:
        """Return which of the stores can be used."""
        return {**self.accounts.stores_up(), "learned": not self.store.error}


class Sockets(NamedTuple):
    """Sockets that listen already, of a socket unit or of the router before; () = the configured address."""

    clients: tuple[socket.socket, ...] = ()
    admin: tuple[socket.socket, ...] = ()


@dataclass(slots=True)
class Running:
    """A router that serves. `grace_s` is how long requests may continue when it stops."""

    router: Router
    clients: Listener
    admin: Listener
    config: Config
    grace_s: float = 0.0
    keeps_tags: bool = False
    has_successor: bool = False

    @property
    def url(self) -> str:
        return self.clients.url

    @property
    def admin_url(self) -> str:
        return self.admin.url

    def sockets_for(self, config: Config) -> Sockets:
        """Return duplicates of the sockets that a router with `config` listens on, too."""
        return Sockets(
            self.clients.sockets() if config.listen == self.config.listen else (),
            self.admin.sockets() if config.admin == self.config.admin else (),
        )

    def hand_over_to(self, config: Config) -> None:
        """Leave to a router with `config`, which serves already, what both of them use."""
        self.has_successor = True
        self.keeps_tags = owner_of(config) == owner_of(self.config)

    def hasten(self) -> None:
        """End the grace period."""
        self.clients.hasten()


NO_SOCKETS = Sockets()


@asynccontextmanager
async def running(
    config: Config,
    *,
    probe: VramProbe | None = None,
    hooks: Iterable[Hook] = (),
    is_probed: bool = False,
    sockets: Sockets = NO_SOCKETS,
    is_successor: bool = False,
    quotas: Quotas | None = None,
) -> AsyncIterator[Running]:
    """Serve `config` until the context ends. With `is_probed`, `probe` is used instead of the configured one.

    With `is_successor` another router serves meanwhile: connections are accepted only when the state is known.
    `quotas` hold what teams have used of their limits before.
    """
    tls = listener_tls(config)
    section = next(iter(config.backends.values()))
    if not is_probed and section.gpus != "none":
        probe = build_probe(section.probe)
    recent = RecentDecisions(config.telemetry.decisions_kept)

    def warn(text: str) -> None:
        telemetry.emit(Notified(text, level="warning"))

    def is_known(name: str) -> bool:
        return router.directory.is_known(name)

    metrics, outage = MetricsHook(__version__, is_known_model=is_known), Outage(time.time)
    accounts = Accounts(config.usage, config.audit, is_known, warn, flush=lambda: telemetry.flush(), unix_now=time.time)
    totals, timeline = Totals(time.time), Timeline(time.time)
    every: list[Hook] = [recent, metrics, outage, totals, timeline, *accounts.hooks, *hooks]
    telemetry = Telemetry(every, later=asyncio.get_running_loop().call_later)
    router = Router(config, probe=probe, telemetry=telemetry, recent=recent, outage=outage, accounts=accounts)
    metrics.watch(Scrape(router.backend, router.stores_up, accounts.lost).gauges)

    def exposition() -> tuple[bytes, str]:
        telemetry.flush()
        return metrics.render()

    counts = quotas or MemoryQuotas(asyncio.get_running_loop().time, time.time)
    limits = Limits(counts, telemetry.emit)
    edge = Edge(
        router.dispatcher,
        router.directory,
        edge_settings(config),
        report=warn,
        emit=telemetry.emit,
        team_limits=limits,
        rules=router.rules,
        clock=time.time,
    )
    where = config.listen.host, config.listen.port
    proxies = Proxies(config.trusted_proxies) if config.proxy_protocol else None
    clients = Listener(
        edge,
        *where,
        limits=wire_limits(config),
        sockets=sockets.clients,
        tls=tls,
        proxies=proxies,
        on_refused=edge.reports.refused_early,
    )
    board = Board(router.backend, router.inspector, totals, timeline, time.time)
    feed = Feed(board.data, router.inspector.decisions)

    def set_draining(is_draining: bool) -> None:
        edge.drain(is_draining=is_draining)
        router.inspector.drain(is_draining=is_draining)

    actions = Actions(router.backend, set_draining)
    teams = TeamsPage(router.rules, router.backend, counts, accounts, time.time)
    admin_pages = admin_app(
        Parts(router.inspector, actions, accounts, teams, exposition, board, feed, Chat(router.dispatcher)),
        hosts=config.hosts,
        lock=admin_lock(config, time.time),
    )
    where = config.admin.host, config.admin.port
    admin = Listener(Asgi(admin_pages), *where, limits=admin_limits(config), sockets=sockets.admin)
    service = Running(router, clients, admin, config)
    if isinstance(counts, MemoryQuotas) and not is_successor:
        await accounts.restore(counts.restore)
    # Before the first client can connect, so that its request waits for the state and does not find it half read.
    starting = asyncio.get_running_loop().create_task(router.start())
    lag = asyncio.get_running_loop().create_task(watch_loop_lag(telemetry))
    seen = asyncio.get_running_loop().create_task(board.watch())
    reminders = asyncio.get_running_loop().create_task(remind(open_doors(config), warn))
    try:
        if is_successor:
            await asyncio.shield(starting)
        async with admin, clients:
            try:
                await asyncio.shield(starting)  # if this is cancelled, requests that wait for it are told first
                for warning in warnings(config, router.backend):
                    warn(warning)
                yield service
            finally:
                # First the readiness, so that load balancers stop sending; then the requests; then what they use.
                edge.drain()
                router.inspector.drain()
                if service.has_successor:  # whose admin pages are the ones to see; else they show the drain
                    await admin.stop()
                await clients.stop(service.grace_s)
    finally:
        for task in (lag, seen, reminders):
            task.cancel()
        await feed.aclose()
        starting.cancel()  # a listener may have failed, or the start was cancelled
        await asyncio.gather(starting, return_exceptions=True)
        await router.stop(keeps_tags=service.keeps_tags)
        telemetry.flush()  # the last requests' lines are in a batch whose timer will not fire any more
