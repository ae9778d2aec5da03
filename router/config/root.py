"""The whole configuration, and the rules on which its sections must agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import Field, StrictBool

from router.config.backends import BackendSection
from router.config.names import Host, Origin
from router.config.section import Section
from router.config.sections import (
    ChainValue,
    Clients,
    Defaults,
    Limits,
    Queue,
    SnapshotTimes,
    Store,
    Switch,
    TelemetrySection,
    Timeouts,
    Tls,
)
from router.config.values import WILDCARDS, Address, Listen, ModelPattern, ProxyNetwork
from router.core.ollama.names import key_of

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that is not allowed: where it is, what was found there, and what is allowed."""

    path: Path
    found: object
    allowed: str


class Config(Section):
    listen: Listen = Address("127.0.0.1", 11435)
    """address that clients connect to"""
    admin: Listen = Address("127.0.0.1", 11436)
    """address of /router/…, /metrics, /healthz, /readyz and the dashboard"""
    tls: Tls = Tls()
    """TLS for the clients' listener; the admin listener is not encrypted"""
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
    """the Ollama server behind the router; exactly one for now"""
    chains: Mapping[ModelPattern, ChainValue] = {}
    """what may serve a model, biggest first; a name with * or ? is a pattern"""
    defaults: Defaults = Defaults()
    """settings for whatever a chain or a request leaves open"""
    queue: Queue = Queue()
    """requests that wait for their model"""
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


def inconsistencies(config: Config) -> Iterator[Problem]:
    """Yield a problem for every place where settings contradict each other."""
    if len(config.backends) > 1:
        second = list(config.backends)[1]
        yield Problem(("backends", second), second, "exactly one backend for now")
    yield from _addresses(config)
    yield from _proxies(config)
    yield from _contexts(config.defaults)
    yield from _chains(config)


def _addresses(config: Config) -> Iterator[Problem]:
    if config.listen == config.admin and config.listen.port != 0:
        yield Problem(("admin",), str(config.admin), "an address other than listen")
    for name, backend in config.backends.items():
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


def _contexts(defaults: Defaults) -> Iterator[Problem]:
    if defaults.min_num_ctx > defaults.num_ctx:
        yield Problem(("defaults", "min_num_ctx"), defaults.min_num_ctx, f"at most num_ctx ({defaults.num_ctx})")
    if defaults.max_num_ctx is not None and defaults.max_num_ctx < defaults.min_num_ctx:
        allowed = f"at least min_num_ctx ({defaults.min_num_ctx})"
        yield Problem(("defaults", "max_num_ctx"), defaults.max_num_ctx, allowed)


def _chains(config: Config) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, chain in config.chains.items():
        key = name.lower() if WILDCARDS.search(name) else key_of(name)
        if key in seen:
            yield Problem(("chains", name), name, f'one chain per model; "{seen[key]}" is the same model')
        seen.setdefault(key, name)
        if not isinstance(chain.variants, str):
            entries = [(key_of(entry.model), entry.num_ctx) for entry in chain.variants]
            for index in range(1, len(entries)):
                if entries[index] in entries[:index]:
                    found = chain.variants[index].model
                    yield Problem(("chains", name, "variants", index), found, "each variant once")
        if chain.preload and WILDCARDS.search(name):
            yield Problem(("chains", name, "preload"), True, "false: a pattern does not name one model to preload")
    yield from _cycles(config)


def _cycles(config: Config) -> Iterator[Problem]:
    """Yield chains that only refer to each other and so lead to no model.

    A chain that lists its own name means the installed model.
    """
    follows: dict[str, tuple[str, set[str]]] = {}
    for name, chain in config.chains.items():
        if not isinstance(chain.variants, str) and not WILDCARDS.search(name):
            targets = {key_of(entry.model) for entry in chain.variants}
            if key_of(name) not in targets:
                follows[key_of(name)] = (name, targets)
    for start, (name, targets) in follows.items():
        reached: set[str] = set()
        frontier = targets & follows.keys()
        while frontier:
            reached |= frontier
            frontier = (
                set(itertools.chain.from_iterable(follows[key][1] for key in frontier)) & follows.keys() - reached
            )
        if start in reached:
            yield Problem(("chains", name), name, "models: these chains only refer to each other, in a circle")
