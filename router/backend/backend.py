"""One Ollama with everything that the router keeps for it: the parts, how they are connected, and their life cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from router.adapters.catalog import CatalogReader
from router.adapters.gpu.reading import VramProbe
from router.adapters.ollama import OllamaClient
from router.adapters.shown_models import ShownModels
from router.adapters.store import LearnedStore
from router.backend.cards import Cards
from router.backend.contest import Contest
from router.backend.derived import DerivedTags, owner_of
from router.backend.endpoint import Endpoint, endpoint_of
from router.backend.epoch import Epoch
from router.backend.installed import Installed
from router.backend.keepalive import KeepAlive
from router.backend.lessons import Lessons
from router.backend.line import Line
from router.backend.residency import Residency
from router.backend.residents import Residents
from router.backend.rules import DecisionRules
from router.backend.team_counts import TeamCounts
from router.backend.tracked import Tracked
from router.backend.world import World
from router.config import BackendSection, Config
from router.core.decision.verdict import Rules
from router.core.ollama.names import key_of
from router.core.ollama.options import ServerSettings
from router.errors import ConfigError
from router.http.client.link import link_options
from router.http.client.pool import HttpRelay
from router.http.client.response import Relay
from router.telemetry import Notified, SteadyTime, Supervisor, Telemetry

PROBE_TRIES, PROBE_PAUSE_S = 8, 0.25
"""Readings of the probe at start before memory counts as unknown: a suspended driver takes seconds to wake up."""

SMALLEST_POOL = 8
"""A smaller pool has no reserve for clients with few requests, a larger one at most this part of itself."""

REMOVE_S = 3.0
"""Longest time for removing the derived tags at the end: an Ollama that hangs must not hold up the stop."""


class Backend:
    """One Ollama. `start` and `stop` bound its life; `unix_now` is the wall clock.

    `counts` are those that it shares with the other backends of the router.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        probe: VramProbe | None,
        store: LearnedStore,
        telemetry: Telemetry,
        unix_now: Callable[[], float],
        counts: TeamCounts | None = None,
    ) -> None:
        section, epoch, telemetry = config.backends[name], Epoch(), telemetry.of(name)
        self.name, self.now = name, asyncio.get_running_loop().time
        self.server, self.relay, self.lists = self._connected(section, config)
        residents = Residents(frozenset(map(key_of, config.defaults.keep)), epoch)
        reader = reader_of(self.server, config, telemetry)
        self.installed = Installed(reader, epoch, config.snapshot.catalog_interval_s, residents.move)
        self.cards = Cards(probe, residents, epoch, telemetry, section.gpus, config, f"backends.{name}.gpus")
        self.world = World(self.server, self.installed, residents, self.cards, epoch, telemetry, name, config)
        self.upkeep, steady = Supervisor(telemetry), SteadyTime(self.now, unix_now)  # for ages of measurements
        self._rules = DecisionRules(section, config.defaults, steady.now_s, self._loaded_limit)
        self.lessons = self._lessons_in(store, config, telemetry, steady.now_s)
        self.residency = Residency(self.world, self.lessons, self.relay, config, telemetry)
        self.line = Line(self.world, self.residency, self._server_settings, config, telemetry, counts or TeamCounts())
        self.keepalive = KeepAlive(
            self.residency, residents, config.defaults, is_switching=lambda: self.line.is_switching, unix_now=unix_now
        )
        self.derived = self._derived_tags(config, telemetry)
        residents.notify(on_leave=self.line.left)
        self._starting: asyncio.Event | None = None  # set when the start has ended
        self._tasks: set[asyncio.Task[None]] = set()

    def _connected(self, section: BackendSection, config: Config) -> tuple[OllamaClient, Relay, Relay]:
        """Return the clients for the router's own requests, for those to models, and for lists and metadata."""
        endpoint, limits = endpoint_of(section, self.name), config.limits
        reserve = min(limits.pool_reserve, limits.pool // SMALLEST_POOL)
        relay = relay_to(endpoint, section, config, limits.pool - reserve, reserve)
        return client_of(endpoint, config), relay, relay_to(endpoint, section, config, limits.list_pool)

    def _lessons_in(
        self, store: LearnedStore, config: Config, telemetry: Telemetry, unix_now: Callable[[], float]
    ) -> Lessons:
        is_auto, is_alone = config.backends[self.name].server.auto, len(config.backends) == 1
        return Lessons(
            store, self._configured, telemetry, unix_now, is_auto=is_auto, machine=self.name, is_alone=is_alone
        )

    def _derived_tags(self, config: Config, telemetry: Telemetry) -> DerivedTags:
        is_loaded = self.world.residents.__contains__

        def report(text: str) -> None:
            telemetry.emit(Notified(text, level="warning"))

        return DerivedTags(self.server, self.installed, owner_of(config), self._is_quiet, is_loaded, report)

    @property
    def contest(self) -> Contest:
        """Whether others use the same Ollama, and whose turn it is then."""
        return self.residency.contest

    def _loaded_limit(self) -> int:
        return self.residency.loaded_limit.count

    def _configured(self) -> ServerSettings:
        return self._rules.server_settings(self.world.version)

    def _server_settings(self) -> ServerSettings:
        return self.rules().machine.settings

    def rules(self) -> Rules:
        """Return the current rules for decisions; the same object while they are unchanged."""
        return self._rules.current(self.lessons.learned, self.world.version, self.residency.load_times.costs)

    def leave(self, tracked: Tracked | None) -> None:
        """Leave a resident on behalf of a request that ended; None is ignored."""
        if tracked is not None:
            self.world.residents.leave(tracked, self.now())

    def answered(self, request: object) -> None:
        """Note that a request which was passed on has an answer, or an end: look what Ollama has loaded for it."""
        if self.world.loads.answered(request):
            self._own(self._look())

    async def _look(self) -> None:
        with suppress(Exception):  # whatever it was, the next reading may succeed
            await self.world.refresh_fresh()

    def reserved_bytes(self) -> dict[int, int]:
        """Return the bytes per card that the switch under way needs."""
        return {gpu.index: self.line.reserved_bytes(gpu.index) for gpu in self.cards.gpus or ()}

    async def forget(self, weights: str | None) -> int:
        """Forget what loads of these weights (None: of all) have taught, and every bar; return the number of loads."""
        count = await self.lessons.forget(weights)
        self.line.forget(weights)
        if weights is None:
            self.cards.forget()
            self.residency.loaded_limit.forget()
        return count

    # --- its life ----------------------------------------------------------------------------------------------

    def keep_teams(self, names: frozenset[str]) -> None:
        """Forget what is counted of all other teams, which are no more; what they have under way counts to its end."""
        self.line.keep_teams(names)
        self.world.residents.keep_teams(names)

    async def start(self, on_restart: Callable[[], None]) -> None:
        """Read the state once, then poll it in the background. It is not an error if Ollama cannot be reached.

        `on_restart` is called whenever Ollama answers for the first time, or again. Raises ConfigError if the probe
        does not list the configured cards.
        """
        self.installed.notify(on_read=self.derived.note_catalog)
        self.world.notify(
            on_change=self.line.pump,
            on_restart=lambda: self._restarted(on_restart),
            signs=self.contest,
        )
        starting = self._starting = asyncio.Event()
        try:
            await self._read_first_state()
        finally:
            self._starting = None
            starting.set()
        for name, part in (("world", self.world), ("keepalive", self.keepalive), ("derived_tags", self.derived)):
            self.upkeep.keep(name, part.watch)

    @property
    def answers(self) -> bool:
        """True while Ollama counts as one that answers, once its state was read for the first time."""
        return self.world.health.is_up and self._starting is None

    @property
    def is_starting(self) -> bool:
        """True until the state has been read for the first time, if a start is under way."""
        return self._starting is not None

    async def started(self) -> None:
        """Return when the state has been read for the first time, if a start is under way."""
        if self._starting is not None:
            await self._starting.wait()

    async def _read_first_state(self) -> None:
        await self.lessons.recall()
        await self.world.refresh()
        for _ in range(PROBE_TRIES):
            if self.cards.probe is None or self.cards.shown is not None:
                break
            await asyncio.sleep(PROBE_PAUSE_S)
            await self.world.refresh_fresh()
        if problem := self.cards.unmatched():
            raise ConfigError(problem)

    async def stop(self, *, keeps_tags: bool = False) -> None:
        """Stop polling, remove this router's derived tags (unless another goes on using them), and disconnect.

        Idempotent.
        """
        await self.upkeep.stop()  # first, so that no poll restarts what is stopped below
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.line.aclose()
        await self.residency.aclose()
        if self.world.is_up and not keeps_tags:  # an Ollama that does not answer would only delay the stop
            with suppress(TimeoutError):
                async with asyncio.timeout(REMOVE_S):
                    await self.derived.remove_all()
        await self.installed.aclose()
        await self.relay.aclose()
        await self.lists.aclose()
        await self.server.aclose()
        if self.cards.probe is not None:
            await self.cards.probe.aclose()

    def _restarted(self, on_restart: Callable[[], None]) -> None:
        """Nothing is loaded that a derived tag could be for, and settings may be others; pass the event on."""
        self.derived.forget_all()
        self.lessons.note_restart()
        self.residency.loaded_limit.forget()
        self.line.slots.forget()
        on_restart()

    def _is_quiet(self) -> bool:
        """Return True if no load is asked for, and no request waits for one."""
        return not (self.line.is_switching or self.line.depth)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def client_of(endpoint: Endpoint, config: Config) -> OllamaClient:
    """Return the HTTP client for the backend's control plane."""
    return OllamaClient(
        endpoint.url,
        tls=endpoint.tls,
        authorization=endpoint.authorization,
        timeout_s=config.timeouts.control_s,
        connect_timeout_s=config.timeouts.connect_s,
        load_timeout_s=config.switch.load_timeout_s,
        socket_options=link_options(config.timeouts.link_s),
        max_bytes=config.limits.control_bytes,
    )


def reader_of(server: OllamaClient, config: Config, telemetry: Telemetry) -> CatalogReader:
    """Return the reader of the backend's catalog."""

    def report(text: str) -> None:
        telemetry.emit(Notified(text, level="warning"))

    kept = ShownModels(config.limits.facts_bytes, config.limits.model_facts_bytes)
    return CatalogReader(server, patience_s=config.timeouts.facts_s, report=report, kept=kept)


def relay_to(endpoint: Endpoint, section: BackendSection, config: Config, pool: int, reserve: int = 0) -> HttpRelay:
    """Return an HTTP client for the backend's data path, with at most `pool` connections, and a `reserve`."""
    return HttpRelay(
        endpoint.url,
        tls=endpoint.tls,
        tls_name=endpoint.tls_name,
        authorization=endpoint.authorization,
        connect_timeout_s=config.timeouts.connect_s,
        first_byte_timeout_s=config.timeouts.first_byte_s,
        idle_timeout_s=config.timeouts.stream_idle_s,
        pool_size=pool,
        reserve=reserve,
        pool_wait_s=config.queue.wait_s,
        silent_s=config.timeouts.link_s,
        suppress_cancel=section.suppress_cancel,
        unwanted_bytes=config.limits.unwanted_bytes,
        unwanted_s=config.timeouts.unwanted_s,
    )
