"""Builds from the configuration: the stores, and the settings of the HTTP layer, which does not know it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from router import __version__
from router.adapters.ed25519 import verifier
from router.adapters.lender import Times
from router.adapters.outbox import Outbox
from router.adapters.shared_quotas import SharedQuotas
from router.adapters.store import LearnedStore, MemoryStore, SqliteStore
from router.adapters.usage_postgres import PostgresUsage
from router.adapters.usage_store import SqliteUsage, UsageStore
from router.adapters.valkey import ValkeyStore
from router.admin.lock import AdminLock
from router.admin.pages import page_paths
from router.api.fronts import Fronts
from router.api.node import Node
from router.api.permissions import Permissions
from router.api.settings import EdgeSettings
from router.api.traces import Tracing
from router.backend.backend import Backend
from router.backend.endpoint import secret_in, trusting
from router.config import Clients, Config, Shared, Usage
from router.core.memory.fit_target import version_of
from router.core.nodes.call import MOST_CALL_BYTES
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.team import ANYONE
from router.core.units import MIB
from router.credentials import database_in
from router.http.server.limits import WireLimits
from router.http.server.proxies import Proxies
from router.routing.fleet.place import Place
from router.routing.nodes.models import NodeModels
from router.routing.nodes.state import NodeState
from router.routing.ruled import RulesInForce
from router.telemetry import TraceHook
from router.telemetry.otlp import exporter_of, is_available

ADMIN_CONNECTIONS = 64
"""Most connections to the admin pages."""

REMINDER_S = 3600.0
"""Period of the warnings about what clients may do without a key."""

OLDEST_OLLAMA = (0, 6, 4)
"""The first version that reports what a model can do and all of its tensors; older ones are not tested."""


def build_store(path: str | None, report: Callable[[str], None]) -> LearnedStore:
    """Return the store for observations; `report` is called with a sentence for the operator when it fails."""
    if path == ":memory:":
        return MemoryStore()
    if path is None:
        state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        path = str(Path(state) / "ollama-router" / "learned.sqlite")
    return SqliteStore(path, report=report)


def build_usage(usage: Usage, report: Callable[[str], None]) -> UsageStore:
    """Return the store of what teams use. Raises ConfigError if its database is not named well."""
    if usage.postgres_file is None:
        return SqliteUsage(usage.path, usage.keep_days, report=report)
    url = database_in(usage.postgres_file, "usage.postgres_file")
    outbox = Outbox(f"{usage.path}.outbox" if usage.path is not None else None, usage.outbox_mib * MIB)
    return PostgresUsage(url, outbox, usage.keep_days, report=report)


def build_shared(
    shared: Shared,
    local: MemoryQuotas,
    report: Callable[[str], None],
    unix_now: Callable[[], float],
    *,
    is_first: bool,
) -> SharedQuotas | None:
    """Return the limits that several routers share, None if each counts for itself. Raises ConfigError."""
    if shared.valkey is None:
        return None
    file = shared.password_file
    password = secret_in(file, "shared.password_file") if file is not None else None
    if shared.ca is not None:
        trusting(shared.ca, "shared.ca")
    store = ValkeyStore(shared.valkey, user=shared.user, password=password, ca=shared.ca)
    times = Times(shared.connect_s, shared.call_s, shared.hold_s, shared.pause_s)
    return SharedQuotas(local, store, times, shared.routers, unix_now=unix_now, report=report, is_first=is_first)


def edge_settings(config: Config) -> EdgeSettings:
    """Return the settings of the edge."""
    return EdgeSettings(
        is_loopback=config.listen.is_loopback,
        insecure_no_auth=config.insecure_no_auth,
        hosts=config.hosts,
        origins=config.origins,
        body_bytes=config.limits.body_bytes,
        buffered_bytes=config.limits.buffered_bytes,
        zstd_bytes=config.limits.zstd_bytes,
        inline_bytes=config.limits.inline_bytes,
        body_values=config.limits.body_values,
        line_bytes=config.limits.line_bytes,
        body_idle_s=config.timeouts.body_idle_s,
        body_total_s=config.timeouts.body_total_s,
        few_requests=config.limits.pool_reserve,
        lists_per_address=max(1, config.limits.list_pool // 2),
        list_s=config.timeouts.control_s,
        has_router_headers=config.telemetry.headers,
        permissions=permissions_of(config.clients),
        registries=config.clients.registries,
        remote_hosts=config.clients.remote_hosts,
        proxies=Proxies(config.trusted_proxies),
        tracing=tracing_of(config),
    )


def tracing_of(config: Config) -> Tracing | None:
    """Return what makes requests spans; None if nothing is traced."""
    otlp = config.telemetry.otlp
    return Tracing(otlp.sample) if otlp.endpoint is not None and is_available() else None


def trace_hook(config: Config, warn: Callable[[str], None]) -> TraceHook | None:
    """Return the hook that sends traces; None if nothing is traced. `warn` is called by a thread, too."""
    otlp = config.telemetry.otlp
    if otlp.endpoint is None or (exporter := exporter_of(otlp.endpoint, otlp.timeout_s, warn)) is None:
        return None
    return TraceHook(exporter, most_waiting=otlp.max_waiting, every_s=otlp.every_s, warn=warn)


def permissions_of(clients: Clients) -> Permissions:
    """Return what requests may ask for."""
    return Permissions(clients.nothing_fits, clients.keep_alive_forever, clients.num_gpu)


def wire_limits(config: Config) -> WireLimits:
    """Return the limits of a client's connection. To the head of a client's request a front adds its call."""
    calls_bytes = MOST_CALL_BYTES if config.node.name is not None else 0
    return WireLimits(
        header_s=config.timeouts.header_s,
        keep_alive_s=config.timeouts.keep_alive_s,
        write_idle_s=config.timeouts.write_idle_s,
        header_bytes=config.limits.header_bytes + calls_bytes,
        headers=config.limits.headers,
        connections=config.limits.connections,
        connections_per_address=config.limits.connections_per_address,
    )


def admin_limits(config: Config) -> WireLimits:
    """Return the limits of a connection to the admin pages, which are few, and are counted apart from the clients'."""
    return replace(wire_limits(config), connections=ADMIN_CONNECTIONS, connections_per_address=ADMIN_CONNECTIONS)


def open_doors(config: Config) -> list[str]:
    """Return the warnings about what clients may do without a key, which are repeated while the router runs."""
    if config.listen.is_loopback and not config.trusted_proxies:
        return []
    team = next((file.section for file in config.team_files if file.section.team == config.default_team), None)
    rights: Iterable[str] = ANYONE.team.rights if team is None else team.rights
    may = " and ".join(sorted(rights))
    if config.insecure_no_auth and team is None:
        may = "do everything"
    if not may:
        return []
    keys = "for clients without a key" if config.team_files else "without keys"
    return [f"listening on {config.listen.host} {keys}: anyone who can connect may {may}"]


async def remind(found: Callable[[], list[str]], warn: Callable[[str], None], every_s: float = REMINDER_S) -> None:
    """Repeat the warnings that are `found`, for as long as the router runs: a reload may end or begin them."""
    while True:
        await asyncio.sleep(every_s)
        for text in found():
            warn(text)


def build_node(config: Config, place: Place, rules: RulesInForce) -> Node | None:
    """Return what fronts ask of this router, whose only backend is that of `place`; None if it is not a node."""
    if config.node.name is None:
        return None
    models = NodeModels(place)
    state = NodeState(config.node.name, secrets.token_hex(8), __version__, place, models.digests)
    return Node(state, models, Fronts(config.node_keys, state, lambda: rules.book))


def admin_lock(config: Config, clock: Callable[[], float], is_of_team: Callable[[bytes], bool]) -> AdminLock:
    """Return the lock of the admin pages; `is_of_team` tells whether a key is one of a team."""
    return AdminLock(
        config.keys_of_admins,
        is_loopback=config.admin.is_loopback,
        is_open=config.insecure_no_auth,
        public=page_paths(),
        clock=clock,
        is_of_team=is_of_team,
    )


def warnings(config: Config, backends: Iterable[Backend]) -> list[str]:
    """Return the warnings for the operator at start, except those about Ollama's version."""
    found = open_doors(config)
    if not (config.admin.is_loopback or config.keys_of_admins):
        found.append(_open_admin(config))
    if verifier() is None and any(key.is_ssh for file in config.team_files for key in file.keys):
        found.append(
            "keys with ssh are not accepted: the library cryptography is missing (pip install 'ollama-router[ssh]')"
        )
    if "*" in config.hosts:
        found.append("hosts contains *: any web page can reach the router under a name of its own (DNS rebinding)")
    for backend in backends:
        if backend.cards.gpus is None and backend.world.is_up:
            which = f"of {backend.name} " if len(config.backends) > 1 else ""
            found.append(
                f"free VRAM {which}cannot be read: each load is tried, and verified by Ollama's own figures (verify "
                "mode); backends.NAME.probe says where else it can be read"
            )
    return found


def _open_admin(config: Config) -> str:
    what = f"admin on {config.admin.host} without admin_keys"
    if config.insecure_no_auth:
        return f"{what}: anyone who can connect may read and change everything there (insecure_no_auth)"
    return f"{what}: only /healthz and /readyz are answered; ollama-router keys new --admin makes a key"


def version_warnings(version: str) -> list[str]:
    """Return the warnings for the operator about a version of Ollama."""
    found, known = [], version_of(version)
    if known < OLDEST_OLLAMA:
        oldest = ".".join(map(str, OLDEST_OLLAMA))
        found.append(f"Ollama {version} is older than {oldest}, the oldest version that is supported")
    if known < (0, 17, 1):
        found.append(f"Ollama {version} is older than 0.17.1: see CVE-2026-7482")
    return found
