"""Connects what a front routes requests by."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from router.adapters.discovery.dns import DnsNodes
from router.adapters.discovery.endpointslices import EndpointSlices
from router.adapters.discovery.found import Discovery
from router.adapters.discovery.static import StaticNodes
from router.backend.endpoint import endpoint_of
from router.config import BackendSection, Config
from router.core.decision.fleet.rank import Ranked
from router.core.payload.read import InferenceRequest
from router.errors import ConfigError
from router.routing.chains import Chains
from router.routing.fleet.failures import Failures
from router.routing.front.choosing import Choosing
from router.routing.front.directory import FrontDirectory
from router.routing.front.front import Front
from router.routing.front.members import Members
from router.routing.front.node import Links
from router.routing.front.own import UnderWay
from router.routing.ruled import RuledChain, RulesInForce
from router.telemetry import Notified, Telemetry

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts the token and the authorities for the API server."""


@dataclass(frozen=True, slots=True)
class FrontRoutes:
    """What a front routes requests by."""

    members: Members
    chains: Chains
    choosing: Choosing
    dispatcher: Front
    directory: FrontDirectory
    now: Callable[[], float]

    def ranked(self, request: InferenceRequest, chain: RuledChain) -> Sequence[Ranked]:
        """Return all nodes for a plain request, the best first."""
        return self.choosing.ranked(request, chain, self.now())

    def forget_rules(self, _teams: Collection[str]) -> None:
        """Drop what was remembered by the rules before a reload."""
        self.chains.forget()
        self.choosing.forget()


def front_routes(
    name: str, config: Config, rules: RulesInForce, telemetry: Telemetry, now: Callable[[], float]
) -> FrontRoutes:
    """Return what routes requests to the nodes of the backend `name`. Raises ConfigError for a file it cannot use."""
    section = config.backends[name]
    endpoint = endpoint_of(section, name)

    def connect(url: str) -> Links:
        return Links.to(endpoint._replace(url=url), section, config)

    def report(text: str) -> None:
        telemetry.emit(Notified(text, level="warning"))

    members = Members(discovery_of(section, name, report), connect, telemetry)
    chains, own = Chains(rules), UnderWay()
    failures = Failures(config.fleet, telemetry, now)
    choosing = Choosing(members, chains, failures, config, own.count)

    def best(chain: RuledChain) -> str | None:
        return choosing.variant_of(InferenceRequest(chain.name), chain, now())

    front = Front(members, chains, choosing, failures, own, telemetry, name)
    return FrontRoutes(members, chains, choosing, front, FrontDirectory(members, chains, best, name), now)


def discovery_of(section: BackendSection, name: str, report: Callable[[str], None]) -> Discovery:
    """Return what finds the nodes. Raises ConfigError where there is no API server to ask."""
    found = section.discover
    if found.dns is not None:
        return DnsNodes(found.dns, found.port, found.every_s, report, is_tls=found.is_tls)
    if found.endpointslices is None:
        return StaticNodes(found.static)
    slices = partial(
        EndpointSlices, found.endpointslices, found.port, pause_s=found.every_s, report=report, is_tls=found.is_tls
    )
    if found.api is not None:
        return slices(url=found.api)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    where = f"backends.{name}.discover.endpointslices"
    if not host:
        raise ConfigError(f"{where}: this is no pod of Kubernetes; allowed: with discover.api, or in a pod")
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    try:
        tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    except OSError as error:  # SSLError too
        why = f"{ACCOUNT} cannot be used: {error.strerror or error}"
        raise ConfigError(f"{where}: {why}; allowed: in a pod with the token of its account") from None
    token = str(ACCOUNT / "token")
    return slices(url=url, token_file=token, tls=tls)
