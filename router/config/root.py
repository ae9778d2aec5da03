"""The whole configuration, and the rules on which its sections must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, StrictBool

from router.config.accounts import Audit, Usage
from router.config.backends import BackendSection
from router.config.chain_checks import chain_problems
from router.config.chain_sections import ChainValue
from router.config.fleet import FleetSection
from router.config.keys import AdminKeySection
from router.config.names import Host, Origin
from router.config.nodes import NodeSection
from router.config.problems import Description, Problem
from router.config.section import Section
from router.config.sections import (
    Clients,
    Defaults,
    Limits,
    SnapshotTimes,
    Store,
    Switch,
    TelemetrySection,
    Timeouts,
    Tls,
)
from router.config.shared import Shared
from router.config.team_checks import BUILT_IN
from router.config.team_files import TeamFile
from router.config.team_values import TeamName
from router.config.values import Address, Listen, ModelPattern, ProxyNetwork
from router.config.waiting import FairnessSection, Queue
from router.core.teams.team import Key


class Config(Section):
    listen: Listen = Address("127.0.0.1", 11435)
    """address that clients connect to"""
    admin: Listen = Address("127.0.0.1", 11436)
    """address of /router/…, /metrics, /healthz, /readyz and the dashboard"""
    tls: Tls = Tls()
    """TLS for clients, and for the admin address if it is beyond loopback"""
    admin_keys: tuple[AdminKeySection, ...] = ()
    """keys for the admin address: needed for what changes something, and beyond loopback for reading too"""
    insecure_no_auth: StrictBool = False
    """if listening beyond loopback, anonymous clients may also pull, create and delete models"""
    clients: Clients = Clients()
    """what requests may ask for"""
    trusted_proxies: tuple[ProxyNetwork, ...] = ()
    """addresses or networks (10.0.0.0/8) of proxies in front of the router, whose X-Forwarded-For is believed"""
    proxy_protocol: StrictBool = False
    """connections of trusted_proxies begin with a header of the PROXY protocol, version 1 or 2; not with tls"""
    hosts: tuple[Host, ...] = ()
    """additional host names under which clients may reach it; *.gpu.lan is all names below gpu.lan, * any name"""
    origins: tuple[Origin, ...] = ()
    """additional origins of web pages that may use it (* is a wildcard); OLLAMA_ORIGINS if this is not set"""
    backends: Mapping[str, BackendSection] = Field(default={"local": BackendSection()}, min_length=1)
    """the Ollama servers behind the router, by name"""
    fleet: FleetSection = FleetSection()
    """how requests are divided between several backends"""
    node: NodeSection = NodeSection()
    """this router owns the cards of one Ollama, and routers in front of several such nodes send it requests"""
    chains: Mapping[ModelPattern, ChainValue] = {}
    """what may serve a model, biggest first; a name with * or ? is a pattern"""
    defaults: Defaults = Defaults()
    """settings for whatever a chain or a request leaves open"""
    queue: Queue = Queue()
    """requests that wait for their model"""
    fairness: FairnessSection = FairnessSection()
    """how teams share the cards"""
    switch: Switch = Switch()
    """changes of what is loaded"""
    snapshot: SnapshotTimes = SnapshotTimes()
    """how often the state of Ollama and of the cards is read"""
    timeouts: Timeouts = Timeouts()
    """timeouts towards clients and towards Ollama"""
    limits: Limits = Limits()
    """largest sizes and numbers"""
    telemetry: TelemetrySection = TelemetrySection()
    """log, response headers, recent decisions"""
    store: Store = Store()
    """measurements of past loads"""
    usage: Usage = Usage()
    """what each team has used, by hour"""
    audit: Audit = Audit()
    """who has used what, a line for each request"""
    shared: Shared = Shared()
    """limits of teams that several routers share"""
    teams: str | None = None
    """files of the teams, a pattern such as teams/*.yaml; null = no teams"""
    default_team: TeamName = BUILT_IN
    """team of clients that show no key and connect from no team's network; anonymous needs no file"""

    watch_files: StrictBool = True
    """read the configuration again when one of its files changes; false = on SIGHUP and POST /router/reload only"""

    _admin_keys: tuple[Key, ...] = PrivateAttr(default=())
    _team_files: tuple[TeamFile, ...] = PrivateAttr(default=())
    _node_keys: tuple[bytes, ...] = PrivateAttr(default=())

    @property
    def nodes(self) -> BackendSection | None:
        """The backend of a front: where its nodes are; None if the router has Ollamas of its own."""
        first = next(iter(self.backends.values()))
        return first if first.is_nodes else None

    @property
    def keys_of_admins(self) -> tuple[Key, ...]:
        """The keys of `admin_keys` with their hashes."""
        return self._admin_keys

    def with_admin_keys(self, keys: tuple[Key, ...]) -> Config:
        """Return a copy with the keys of `admin_keys`."""
        copy = self.model_copy()
        copy._admin_keys = keys
        return copy

    @property
    def node_keys(self) -> tuple[bytes, ...]:
        """The hashes of the keys of the fronts; none if this is not a node."""
        return self._node_keys

    def with_node_keys(self, keys: tuple[bytes, ...]) -> Config:
        """Return a copy with the hashes of the keys of the fronts."""
        copy = self.model_copy()
        copy._node_keys = keys
        return copy

    @property
    def team_files(self) -> tuple[TeamFile, ...]:
        """The files that `teams` matches."""
        return self._team_files

    def with_team_files(self, files: tuple[TeamFile, ...]) -> Config:
        """Return a copy with the files that `teams` matches."""
        copy = self.model_copy()
        copy._team_files = files
        return copy


def inconsistencies(config: Config) -> Iterator[Problem]:
    """Yield a problem for every place where settings contradict each other."""
    yield from _kinds(config)
    yield from _same_urls(config)
    yield from _node(config)
    yield from _addresses(config)
    yield from _proxies(config)
    yield from _contexts(config.defaults)
    yield from chain_problems(config.chains)
    yield from _files(config)


def _kinds(config: Config) -> Iterator[Problem]:
    """Yield a problem for nodes beside other backends: a front has none of its own."""
    if len(config.backends) > 1:
        for name, backend in config.backends.items():
            if backend.is_nodes:
                yield Problem(("backends", name, "kind"), "node", "node for the only backend: a front has no others")


def _same_urls(config: Config) -> Iterator[Problem]:
    """Two backends with one Ollama would take its memory from each other."""
    seen: dict[str, str] = {}
    for name, backend in config.backends.items():
        if not backend.is_nodes and (first := seen.setdefault(backend.url.rstrip("/"), name)) != name:
            yield Problem(("backends", name, "url"), backend.url, f"an Ollama of its own, not that of backends.{first}")


def _node(config: Config) -> Iterator[Problem]:
    """Yield a problem for a node with several backends: what it says of itself is about one Ollama, and its own."""
    if config.node.name is not None and config.nodes is not None:
        found = f"{config.node.name}, whose backend is other nodes"
        yield Problem(("node", "name"), Description(found), "null: a front is not a node, and passes nothing on twice")
    if config.node.name is not None and len(config.backends) > 1:
        found = f"{config.node.name}, with {len(config.backends)} backends"
        yield Problem(
            ("node", "name"), Description(found), "a node with one backend; each Ollama has a node of its own"
        )


def _files(config: Config) -> Iterator[Problem]:
    files = {("store", "path"): config.store.path, ("usage", "path"): config.usage.path}
    files[("audit", "path")] = config.audit.path
    seen: dict[str, tuple[str, str]] = {}
    for path, file in files.items():
        if file is not None and seen.setdefault(file, path) is not path:
            yield Problem(path, file, f"a file of its own, not that of {'.'.join(seen[file])}")


def _addresses(config: Config) -> Iterator[Problem]:
    if config.listen == config.admin and config.listen.port != 0:
        yield Problem(("admin",), str(config.admin), "an address other than listen")
    for name, backend in config.backends.items():
        if backend.is_nodes:
            continue
        upstream = urlsplit(backend.url)
        local = upstream.hostname in (config.listen.host, "localhost", "127.0.0.1", "::1")
        reachable = config.listen.is_loopback or config.listen.host in ("0.0.0.0", "::", upstream.hostname)
        port = upstream.port or (443 if upstream.scheme == "https" else 80)
        if local and reachable and port == config.listen.port:
            path = ("backends", name, "url")
            yield Problem(path, backend.url, "the address of an Ollama, not the router's own (listen)")


def _proxies(config: Config) -> Iterator[Problem]:
    if config.proxy_protocol and not config.trusted_proxies:
        yield Problem(("proxy_protocol",), True, "false, or trusted_proxies that say who sends it")
    if config.proxy_protocol and config.tls.cert is not None:
        yield Problem(("proxy_protocol",), True, "false: with tls the header would come before the handshake")
    if config.tls.client_ca is not None and config.tls.cert is None:
        yield Problem(("tls", "client_ca"), config.tls.client_ca, "null, or tls.cert: without one there is no TLS")


def _contexts(defaults: Defaults) -> Iterator[Problem]:
    if defaults.min_num_ctx > defaults.num_ctx:
        yield Problem(("defaults", "min_num_ctx"), defaults.min_num_ctx, f"at most num_ctx ({defaults.num_ctx})")
    if defaults.max_num_ctx is not None and defaults.max_num_ctx < defaults.min_num_ctx:
        allowed = f"at least min_num_ctx ({defaults.min_num_ctx})"
        yield Problem(("defaults", "max_num_ctx"), defaults.max_num_ctx, allowed)
