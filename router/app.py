"""The composition root: what is assembled for a configuration behind its listeners, started and stopped. No logic."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from router import __version__
from router.adapters.ed25519 import verifier
from router.adapters.gpu.reading import VramProbe
from router.admin.accounts import Accounts
from router.admin.actions import Actions, Reload
from router.admin.askers import Askers
from router.admin.chat import Chat
from router.admin.feed import Feed
from router.admin.focus import Price
from router.admin.outage import Outage
from router.admin.pages import Parts, admin_app
from router.admin.scrape import Scrape
from router.admin.teams import TeamsPage
from router.admin.timeline import Timeline
from router.admin.totals import Totals
from router.api.edge import Edge
from router.api.limits import Limits
from router.api.settings import EdgeSettings
from router.assembly import Assembled, FrontRouter, Router
from router.backend.derived import owner_of
from router.backend.probes import build_probes
from router.config import Config, Loaded, prepare
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.quotas import Quotas
from router.credentials import admin_tls, listener_tls
from router.http.server.asgi import Asgi
from router.http.server.listener import Listener
from router.http.server.proxies import Proxies
from router.telemetry import Hook, MetricsHook, Notified, RecentDecisions, SteadyTime, Telemetry, watch_loop_lag
from router.wiring import (
    admin_limits,
    admin_lock,
    build_shared,
    build_usage,
    edge_settings,
    open_doors,
    permissions_of,
    remind,
    trace_hook,
    warnings,
    wire_limits,
)

LAST_SPANS_S = 2.0
"""How long the end waits for the last traces to be sent."""

LAST_PAGES_S = 0.2
"""How long requests to the admin pages may continue after a hand-over: the one that has asked for it gets an answer."""


class Sockets(NamedTuple):
    """Sockets that listen already, of a socket unit or of the router before; () = the configured address."""

    clients: tuple[socket.socket, ...] = ()
    admin: tuple[socket.socket, ...] = ()


@dataclass(slots=True)
class Running:
    """A router that serves. `grace_s` is how long requests may continue when it stops."""

    router: Assembled
    clients: Listener
    admin: Listener
    loaded: Loaded
    settings: EdgeSettings
    quotas: Quotas
    grace_s: float = 0.0
    keeps_tags: bool = False
    has_successor: bool = False

    @property
    def config(self) -> Config:
        return self.loaded.config

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

    def take_over(self, loaded: Loaded) -> None:
        """Put a configuration in force of which only rules differ; connections, queue and loaded models stay."""
        self.loaded = loaded
        self.settings.permit(permissions_of(loaded.config.clients))
        self.router.take_over(loaded)
        self.quotas.keep_teams(loaded.book.names)

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
    probes: Mapping[str, VramProbe | None] | None = None,
    hooks: Iterable[Hook] = (),
    is_probed: bool = False,
    sockets: Sockets = NO_SOCKETS,
    is_successor: bool = False,
    loaded: Loaded | None = None,
    reload: Reload | None = None,
    quotas: MemoryQuotas | None = None,
    unix_now: Callable[[], float] = time.time,
) -> AsyncIterator[Running]:
    """Serve `config` until the context ends. With `is_probed`, `probe` is used instead of the configured one, or
    `probes` where there are several backends.

    With `is_successor` another router serves meanwhile: connections are accepted only when the state is known.
    `loaded` is what was prepared of `config`, `reload` what `POST /router/reload` does, `quotas` hold what teams have
    used of their limits before. `unix_now` is the wall clock: of days, of dates, of keys that expire.
    """
    loaded = loaded or prepare(config, verify=verifier())
    tls = listener_tls(config)
    is_front = config.nodes is not None
    given = {} if is_front else (probes or {next(iter(config.backends)): probe}) if is_probed else build_probes(config)
    recent = RecentDecisions(config.telemetry.decisions_kept, unix_now=unix_now)

    def warn(text: str) -> None:
        telemetry.emit(Notified(text, level="warning"))

    def is_known(name: str) -> bool:
        return router.directory.is_known(name)

    steady = SteadyTime(asyncio.get_running_loop().time, unix_now)
    metrics, outage = MetricsHook(__version__, is_known_model=is_known), Outage(steady)
    usage = build_usage(config.usage, warn)
    accounts = Accounts(
        usage,
        config.usage.every_s,
        config.audit,
        is_known,
        warn,
        flush=lambda: telemetry.flush(),
        unix_now=unix_now,
        price=Price(config.usage.runner_hour, config.usage.currency),
        counts_usage=not (is_front and config.usage.postgres_file is not None),
    )
    totals, timeline = Totals(steady), Timeline(steady)
    every: list[Hook] = [recent, metrics, outage, totals, timeline, *accounts.hooks, *hooks]
    later = asyncio.get_running_loop().call_soon_threadsafe
    if (traces := trace_hook(config, lambda text: (later(warn, text), None)[1])) is not None:
        every.append(traces)
    telemetry = Telemetry(every, later=asyncio.get_running_loop().call_later)
    local = quotas or MemoryQuotas(asyncio.get_running_loop().time, unix_now)
    shared = build_shared(config.shared, local, warn, unix_now, is_first=not is_successor)
    counts: Quotas = shared or local
    counts.keep_teams(loaded.book.names)
    router: Assembled = (
        FrontRouter(loaded, telemetry, recent, accounts, shared)
        if is_front
        else Router(
            loaded,
            probes=given,
            telemetry=telemetry,
            recent=recent,
            outage=outage,
            accounts=accounts,
            shared=shared,
            unix_now=unix_now,
        )
    )
    metrics.watch(Scrape(router.backends.values(), router.stores_up, accounts.lost, router.nodes).gauges)

    def exposition() -> tuple[bytes, str]:
        telemetry.flush()
        return metrics.render()

    limits = Limits(counts, telemetry.emit, router.notes)
    settings = edge_settings(config)
    edge = Edge(
        router.dispatcher,
        router.directory,
        settings,
        report=warn,
        emit=telemetry.emit,
        team_limits=limits,
        rules=router.rules,
        clock=unix_now,
        node=router.node,
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
    board = router.board(totals, timeline)

    def set_draining(is_draining: bool) -> None:
        edge.drain(is_draining=is_draining)
        router.inspector.drain(is_draining=is_draining)

    actions = Actions(router.backends.values(), set_draining, reload)
    teams = TeamsPage(router.rules, router.backends.values(), counts, accounts, unix_now)
    askers = Askers(router.rules, unix_now)
    feed = Feed(board.data, board.decisions, teams.watched, prepare=teams.refresh, time_s=time.thread_time)
    admin_pages = admin_app(
        Parts(router.inspector, actions, accounts, teams, exposition, board, feed, Chat(router.dispatcher), askers),
        hosts=config.hosts,
        lock=admin_lock(config, unix_now, askers.is_of_team),
    )
    where = config.admin.host, config.admin.port
    admin = Listener(
        Asgi(admin_pages),
        *where,
        limits=admin_limits(config),
        sockets=sockets.admin,
        tls=admin_tls(config, tls),
    )
    service = Running(router, clients, admin, loaded, settings, counts)
    await router.recall(None if is_successor else local)
    # Before the first client can connect, so that its request waits for the state and does not find it half read.
    starting = asyncio.get_running_loop().create_task(router.start())
    router.upkeep.keep("loop_lag", lambda: watch_loop_lag(telemetry))
    router.upkeep.keep("dashboard", board.watch)
    router.upkeep.keep("reminders", lambda: remind(lambda: open_doors(service.config), warn))
    try:
        if is_successor:
            await asyncio.shield(starting)
        async with admin, clients:
            try:
                await asyncio.shield(starting)  # if this is cancelled, requests that wait for it are told first
                for warning in warnings(config, router.backends.values()):
                    warn(warning)
                yield service
            finally:
                # First the readiness, so that load balancers stop sending; then the requests; then what they use.
                edge.stop(has_successor=service.has_successor)
                router.inspector.drain()
                if service.has_successor:  # whose admin pages are the ones to see; else they show the drain
                    router.retire()
                    await admin.stop(LAST_PAGES_S)
                await clients.stop(service.grace_s)
    finally:
        await feed.aclose()
        starting.cancel()  # a listener may have failed, or the start was cancelled
        await asyncio.gather(starting, return_exceptions=True)
        await router.stop(keeps_tags=service.keeps_tags)
        if traces is not None:
            telemetry.flush()
            await asyncio.to_thread(traces.close, LAST_SPANS_S)
        telemetry.flush()  # the last requests' lines are in a batch whose timer will not fire any more
