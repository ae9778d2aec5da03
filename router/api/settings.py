"""The edge's part of the configuration, as plain values. `router/wiring.py` builds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.api.permissions import Permissions
from router.api.traces import Tracing
from router.core.teams.rights import DEFAULT_REGISTRIES, TRUSTED
from router.core.teams.team import ANYONE, Identity
from router.http.server.proxies import Proxies

ALL_PERMITTED = Permissions()
NO_PROXIES = Proxies()


@dataclass(slots=True)
class EdgeSettings:
    """Settings in bytes and seconds. `is_loopback`: only this machine can connect, so every client has all rights.

    A client with at most `few_requests` may use the reserve of connections; for one address at most
    `lists_per_address` lists are read at once, and of several backends each has `list_s` seconds for its list.
    `registries` are the hosts that names of models may have in a transfer, `remote_hosts` those on which new models may
    run; neither bounds who has the right admin.
    `hosts` are additional Host names, `origins` additional Origin patterns (one ``*`` each; a bare ``*`` allows all).
    """

    is_loopback: bool = True
    insecure_no_auth: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 64 << 20
    buffered_bytes: int = 512 << 20
    zstd_bytes: int = 20 << 20
    inline_bytes: int = 256 << 10
    body_values: int = 500_000
    line_bytes: int = 64 << 20
    body_idle_s: float = 30.0
    body_total_s: float = 120.0
    few_requests: int = 16
    lists_per_address: int = 8
    list_s: float = 10.0
    has_router_headers: bool = True
    permissions: Permissions = ALL_PERMITTED
    registries: tuple[str, ...] = DEFAULT_REGISTRIES
    remote_hosts: tuple[str, ...] = ()
    proxies: Proxies = NO_PROXIES
    tracing: Tracing | None = None

    anyone: Identity = field(init=False, default=TRUSTED)
    """Who asks on a router without teams."""

    is_restricted: bool = field(init=False, default=False)
    """True if there is something that requests may not ask for."""

    def __post_init__(self) -> None:
        """Set what is read for each request once."""
        is_local = self.is_loopback and not self.proxies.networks  # clients behind a proxy come from elsewhere
        self.anyone = TRUSTED if is_local or self.insecure_no_auth else ANYONE
        self.permit(self.permissions)

    def permit(self, permissions: Permissions) -> None:
        """Set what requests may ask for from now on; the only setting that a reload changes in place."""
        self.permissions, self.is_restricted = permissions, permissions != ALL_PERMITTED
