"""The composition root: config → adapters → world, line, residency → dispatcher → edge and admin. No logic."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router import __version__
from router.adapters.catalog import CatalogReader
from router.adapters.gpu.amd import AmdSysfsProbe
from router.adapters.gpu.command import CommandProbe
from router.adapters.gpu.detect import StaticProbe, detect_probe
from router.adapters.gpu.nvml import NvmlProbe
from router.adapters.gpu.prometheus import PrometheusProbe
from router.adapters.gpu.reading import VramProbe
from router.adapters.ollama import OllamaClient
from router.adapters.store import LearnedStore, MemoryStore, SqliteStore
from router.admin.inspector import Inspector
from router.admin.pages import admin_app
from router.api.edge import Edge
from router.api.settings import EdgeSettings
from router.backend.derived import DerivedTags
from router.backend.keepalive import KeepAlive
from router.backend.line import Line, LineSettings
from router.backend.residency import Residency, SwitchSettings
from router.backend.world import World, WorldSettings
from router.config import Backend, ChainRules, Config, Defaults, Probe, effective
from router.core.decision.context import ContextRules
from router.core.decision.need import MachineRules
from router.core.decision.policy import Rules
from router.core.ollama.names import key_of
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import Gpu
from router.core.units import MIB
from router.http.client.pool import HttpRelay
from router.http.server.connection import WireLimits
from router.http.server.listener import Listener
from router.routing.chains import Chains
from router.routing.decisions import Decisions, DispatchSettings
from router.routing.directory import Directory
from router.routing.dispatch import Dispatcher
from router.routing.warmup import Warmup
from router.telemetry import Gauges, Hook, MetricsHook, Noted, RecentDecisions, Telemetry, watch_loop_lag

PROBE_TRIES, PROBE_PAUSE_S = 8, 0.25

LEASE_MARGIN_S = 30.0
LEAST_LEASE_S, LONGEST_LEASE_S = 60.0, 3600.0
"""Bounds of what Ollama is told to keep a model for: finite, so that nothing stays loaded when the router dies."""


class Router:
    """Everything that runs for one configuration. `start` and `stop` belong to the lifespan of the server."""

    def __init__(
        self, config: Config, *, probe: VramProbe | None, telemetry: Telemetry, recent: RecentDecisions
    ) -> None:
        backend = next(iter(config.backends.values()))
        self.config = config
        self.telemetry = telemetry
        self.recent = recent
        self.server = OllamaClient(backend.url, load_timeout_s=config.switch.load_timeout_s)
        self.relay = HttpRelay(
            backend.url,
            connect_timeout_s=config.timeouts.connect_s,
            first_byte_timeout_s=config.timeouts.first_byte_s,
            idle_timeout_s=config.timeouts.stream_idle_s,
            pool_size=config.limits.pool,
            pool_wait_s=config.queue.wait_s,
            suppress_cancel=backend.suppress_cancel,
            unwanted_bytes=config.limits.unwanted_bytes,
            unwanted_s=config.timeouts.unwanted_s,
        )
        self.store = _store(config.store.path, lambda text: telemetry.emit(Noted(text, level="warning")))
        self.world = World(self.server, CatalogReader(self.server), probe, _world_settings(config, backend), telemetry)
        self.residency = Residency(
            self.world, self.store, _switch_settings(config), lambda: self._server_settings, telemetry, time.time
        )
        self.line = Line(self.world, self.residency, _line_settings(config), telemetry)
        self.keepalive = KeepAlive(
            self.world,
            self.residency,
            default_s=config.defaults.keep_alive_s,
            longest_s=config.defaults.max_keep_alive_s,
            is_switching=lambda: self.line.loading is not None,
            now=lambda: datetime.now(UTC),
        )
        self.derived = DerivedTags(self.server, self.world)
        chains = Chains(ChainRules(config.chains, config.defaults))
        settings = DispatchSettings(
            config.defaults.response_model,
            config.defaults.derived_tags,
            config.queue.wait_s,
            next(iter(config.backends)),
        )
        decisions = Decisions(self.world, self.line, self.residency, self.derived, chains, self._rules, settings)
        self.directory = Directory(self.world, chains, decisions, self.keepalive, self.relay)
        self.dispatcher = Dispatcher(
            self.world,
            self.line,
            self.residency,
            self.keepalive,
            self.derived,
            self.relay,
            chains,
            decisions,
            settings,
            telemetry,
        )
        self.warmup = Warmup(
            self.world,
            self.line,
            self.dispatcher,
            chains,
            keep=config.defaults.keep,
            preload=(*config.defaults.preload, *(name for name, chain in config.chains.items() if chain.preload)),
        )
        self.inspector = Inspector(
            self.world,
            self.line,
            self.residency,
            self.keepalive,
            decisions,
            self.directory,
            telemetry,
            recent,
            effective(config),
        )
        self._context = _context_rules(config.defaults)
        self._backend = backend
        self._tasks: list[asyncio.Task[None]] = []
        self._remembered: Rules | None = None
        self._remembered_for: tuple[object, ...] = ()
        self.world.on_change = self.line.pump
        self.world.on_restart = self._restarted

    @property
    def _server_settings(self) -> ServerSettings:
        return _server_settings(self._backend, self.world.version)

    def _rules(self) -> Rules:
        """The rules of a decision; built anew only when something was learned or the version changed."""
        now_s = time.time()
        known_for = (self.residency.learned, self.world.version, int(now_s) // 10)
        if self._remembered is None or known_for != self._remembered_for:
            self._remembered_for = known_for
            self._remembered = Rules(
                self._context,
                MachineRules(
                    settings=self._server_settings,
                    safety_bytes=_mib(self.config.defaults.safety_mib),
                    learned=self.residency.learned,
                    step=self.config.defaults.num_ctx_steps,
                    now_s=now_s,
                ),
            )
        return self._remembered

    async def start(self) -> None:
        """Read the world once, then keep watching it. An upstream that cannot be reached is no error here."""
        await self.residency.recall()
        await self.world.refresh()
        for _ in range(PROBE_TRIES):  # a driver that sleeps is slow at first
            if self.world.probe is None or self.world.gpus is not None:
                break
            await asyncio.sleep(PROBE_PAUSE_S)
            await self.world.refresh_fresh()
        for watcher in (self.world.watch(), self.keepalive.watch(), self.warmup.watch()):
            self._own(watcher)

    def _restarted(self) -> None:
        """Ollama is there (again): tags of a router that died go, wanted models come."""
        self.warmup.restart()
        self._own(self.derived.remove_all())

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks = [known for known in self._tasks if not known.done()] + [task]

    async def stop(self) -> None:
        """Give everything back; idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.line.aclose()
        if self.world.is_up:
            await self.derived.remove_all()
        await self.relay.aclose()
        await self.server.aclose()
        await self.store.aclose()
        self.telemetry.flush()
        if self.world.probe is not None:
            await self.world.probe.aclose()


@dataclass(slots=True)
class Running:
    """A router that serves. `grace_s` is how long streams may go on when it stops."""

    router: Router
    clients: Listener
    admin: Listener
    grace_s: float = 0.0

    @property
    def url(self) -> str:
        return self.clients.url

    @property
    def admin_url(self) -> str:
        return self.admin.url


@asynccontextmanager
async def running(
    config: Config, *, probe: VramProbe | None = None, hooks: Iterable[Hook] = (), is_probed: bool = False
) -> AsyncIterator[Running]:
    """Serve `config` until the context ends. `is_probed`: `probe` is given, and not built from the configuration."""
    backend = next(iter(config.backends.values()))
    if not is_probed and backend.gpus != "none":
        probe = build_probe(backend.probe)
    recent = RecentDecisions(config.telemetry.decisions_kept)
    metrics = MetricsHook(__version__, is_known_model=lambda name: router.directory.is_known(name))
    telemetry = Telemetry([recent, metrics, *hooks], later=asyncio.get_running_loop().call_later)
    router = Router(config, probe=probe, telemetry=telemetry, recent=recent)
    metrics.watch(lambda: _gauges(router))

    def exposition() -> tuple[bytes, str]:
        telemetry.flush()
        return metrics.render()

    edge = Edge(router.dispatcher, router.directory, _edge_settings(config))
    limits = _wire_limits(config)
    clients = Listener(edge, config.listen.host, config.listen.port, limits=limits)
    admin_pages = admin_app(router.inspector, exposition, hosts=config.hosts)
    admin = Listener(admin_pages, config.admin.host, config.admin.port, limits=limits)
    await router.start()
    lag = asyncio.get_running_loop().create_task(watch_loop_lag(telemetry))
    try:
        async with admin, clients:
            running = Running(router, clients, admin)
            for warning in _warnings(config, router):
                telemetry.emit(Noted(warning, level="warning"))
            try:
                yield running
            finally:
                edge.drain()
                router.inspector.is_draining = True
                await clients.stop(running.grace_s)
    finally:
        lag.cancel()
        await router.stop()


def _gauges(router: Router) -> Gauges:
    snapshot = router.world.snapshot()
    return Gauges(
        inflight_requests=sum(resident.in_flight for resident in snapshot.residents),
        free_bytes={str(gpu.index): gpu.free_bytes for gpu in snapshot.gpus or ()},
        reserved_bytes={str(gpu.index): router.line.reserved_bytes(gpu.index) for gpu in snapshot.gpus or ()},
    )


def _warnings(config: Config, router: Router) -> list[str]:
    """What an operator should read once at start (acceptance.md S5, S6)."""
    found = []
    if not config.listen.is_loopback:
        rights = "do everything" if config.insecure_no_auth else "infer and read"
        found.append(f"listening on {config.listen.host} without keys: anybody who can connect may {rights}")
    if router.world.gpus is None and router.world.is_up:
        found.append("free VRAM cannot be read here: each load is tried and verified by what Ollama says (verify mode)")
    numbers = [int(part) for part in router.world.version.split(".") if part.isdigit()]
    if numbers and (0, 0, 0) < tuple(numbers) < (0, 17, 1):
        found.append(f"Ollama {router.world.version} is older than 0.17.1: see CVE-2026-7482")
    return found


def _edge_settings(config: Config) -> EdgeSettings:
    return EdgeSettings(
        is_loopback=config.listen.is_loopback,
        insecure_no_auth=config.insecure_no_auth,
        hosts=config.hosts,
        origins=config.origins,
        body_bytes=config.limits.body_bytes,
        zstd_bytes=config.limits.zstd_bytes,
        body_idle_s=config.timeouts.body_idle_s,
        body_total_s=config.timeouts.body_total_s,
        has_router_headers=config.telemetry.headers,
    )


def _wire_limits(config: Config) -> WireLimits:
    return WireLimits(
        header_s=config.timeouts.header_s,
        keep_alive_s=config.timeouts.keep_alive_s,
        write_idle_s=config.timeouts.write_idle_s,
        header_bytes=config.limits.header_bytes,
        headers=config.limits.headers,
        connections=config.limits.connections,
    )


def build_probe(probe: Probe) -> VramProbe | None:
    """The probe that the configuration names; None where there is nothing to read (verify mode)."""
    cache_s, timeout_s = min(probe.cache_s, 0.05), probe.timeout_s
    builders: dict[str, Callable[[], VramProbe | None]] = {
        "auto": lambda: detect_probe(cache_s=cache_s, timeout_s=timeout_s),
        "nvml": lambda: NvmlProbe(cache_s=cache_s, timeout_s=timeout_s),
        "command": lambda: CommandProbe(probe.command, cache_s=probe.cache_s, timeout_s=max(timeout_s, 5.0)),
        "prometheus": lambda: PrometheusProbe(str(probe.url), cache_s=cache_s, timeout_s=max(timeout_s, 2.0)),
        "amd": lambda: AmdSysfsProbe(probe.root),
        "static": lambda: StaticProbe(
            tuple(
                Gpu(
                    index,
                    f"static-{index}",
                    gpu.name,
                    gpu.total_mib * MIB,
                    (gpu.total_mib if gpu.free_mib is None else gpu.free_mib) * MIB,
                )
                for index, gpu in enumerate(probe.gpus)
            )
        ),
        "none": lambda: None,
    }
    return builders[probe.kind]()


def _store(path: str | None, report: Callable[[str], None]) -> LearnedStore:
    if path == ":memory:":
        return MemoryStore()
    if path is None:
        state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        path = str(Path(state) / "ollama-router" / "learned.sqlite")
    return SqliteStore(path, report=report)


def _mib(value: int | None) -> int | None:
    return None if value is None else value * MIB


def _server_settings(backend: Backend, version: str) -> ServerSettings:
    server = backend.server
    target = ServerSettings().fit_target_bytes if server.fit_target_mib is None else server.fit_target_mib * MIB
    return ServerSettings(
        num_parallel=server.num_parallel,
        kv_type=server.kv_type,
        flash_attention=server.flash_attention,
        context_length=server.context_length,
        gpu_overhead_bytes=server.gpu_overhead_mib * MIB,
        sched_spread=server.sched_spread,
        max_loaded_models=server.max_loaded_models or 0,
        fit_target_bytes=target,
        keep_alive_s=server.keep_alive_s,
        version=version,
    )


def _world_settings(config: Config, backend: Backend) -> WorldSettings:
    return WorldSettings(
        ps_interval_s=min(config.snapshot.ps_interval_s, config.snapshot.probe_interval_s),
        catalog_interval_s=config.snapshot.catalog_interval_s,
        stale_after_s=config.snapshot.stale_after_s,
        upgrade_after_s=config.defaults.upgrade_after_s,
        memory_timeout_s=config.switch.memory_timeout_s,
        name=next(iter(config.backends)),
        gpus=None if isinstance(backend.gpus, str) else tuple(backend.gpus),
        has_gpu=backend.gpus != "none",
        keep=frozenset(key_of(name) for name in config.defaults.keep),
    )


def _switch_settings(config: Config) -> SwitchSettings:
    return SwitchSettings(
        settle_s=config.switch.settle_s,
        unload_timeout_s=config.switch.unload_timeout_s,
        memory_timeout_s=config.switch.memory_timeout_s,
        poll_s=config.switch.poll_s,
        lease_s=min(max(config.defaults.keep_alive_s + LEASE_MARGIN_S, LEAST_LEASE_S), LONGEST_LEASE_S),
    )


def _line_settings(config: Config) -> LineSettings:
    return LineSettings(
        max_waiting=config.queue.max_waiting,
        wait_s=config.queue.wait_s,
        age_bound_s=config.queue.age_bound_s,
        affinity_count=config.queue.affinity_count,
        swaps_per_minute=config.defaults.swaps_per_minute,
    )


def _context_rules(defaults: Defaults) -> ContextRules:
    return ContextRules(defaults.num_ctx, defaults.min_num_ctx, defaults.num_ctx_steps, defaults.max_num_ctx)
