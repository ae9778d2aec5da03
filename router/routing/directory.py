"""The names that clients see: installed models, virtual models, derived tags, expiry; and readiness.

Used by all routes that are not inference. Nothing here loads or unloads a model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from router.backend.backend import Backend
from router.core.ollama.derived_names import is_derived
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import is_name, key_of
from router.core.teams.team import Team
from router.errors import BadRequest, ModelNotFound, RouterError
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.chains import Chains
from router.routing.decisions import Decisions

OK = 200
START_S = 2.0
"""How long requests wait at a start for the state that is still being read."""

TIDY_S = 5.0
"""Longest time that the answer to a deletion waits for the deletion of the model's derived tags."""

_REPLACING = frozenset((b"/api/delete", b"/api/copy"))  # pull and create answer in streams: theirs go when those end


@dataclass(frozen=True, slots=True)
class VirtualModel:
    """A chain whose name is not an installed model, as the lists show it."""

    name: str
    variants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Managed:
    """What a request that manages models is about: the kind of its route, names by their roles, digests of blobs."""

    kind: str
    names: Mapping[str, str] = field(default_factory=dict)
    blobs: frozenset[str] = frozenset()


class Directory:
    """Answers questions about names on one backend."""

    def __init__(self, backend: Backend, chains: Chains, decisions: Decisions) -> None:
        self._backend = backend
        self._world = backend.world
        self._installed = backend.installed
        self._chains = chains
        self._decisions = decisions
        self._keepalive = backend.keepalive
        self._relay, self._lists = backend.relay, backend.lists
        self._derived = backend.derived

    @property
    def name(self) -> str:
        """The name of the backend."""
        return self._backend.name

    @property
    def has_several(self) -> bool:
        """True if answers say which backend they are from, because there are several."""
        return False

    async def settled(self) -> None:
        """Wait shortly after the start until the models are known: before, no chain has a variant that is installed."""
        if self._backend.is_starting:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._backend.started(), START_S)

    def sources(self, _kind: str = "") -> tuple[Directory, ...]:
        """Return the backends whose lists are shown: this one."""
        return (self,)

    async def shown_by(self, name: str, team: Team | None = None) -> tuple[Directory, str]:
        """Return the backend that shows a model, and the name for it there; see `show_name`."""
        await self.settled()
        return self, await self.show_name(name, team)

    def targets(self, _what: Managed, asked: str = "") -> tuple[Directory, ...]:
        """Return the backends on which models are managed. Raises BadRequest for another one that is asked for."""
        if asked not in ("", self.name):
            raise BadRequest(f"X-Router-Backend: there is no backend {asked[:64]!r}, only {self.name}")
        return (self,)

    async def forward(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request that is not routed (management) unchanged, and return its answer.

        If it has deleted or replaced a model, the derived tags of that model are gone as well by then.
        """
        answer = await self._relay.open(request)
        if request.target in _REPLACING and answer.status == OK:
            try:
                with suppress(RouterError, TimeoutError):
                    await asyncio.wait_for(self._tidy(), TIDY_S)
            except BaseException:  # the client has left
                answer.close()
                raise
        return answer

    async def read(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request for a list or for metadata, on a connection of those that requests to models cannot take."""
        return await self._lists.open(request)

    async def _tidy(self) -> None:
        await self._installed.refresh()
        await self._derived.tidy(is_waited_for=True)

    def virtual_models(self, team: Team | None = None) -> list[VirtualModel]:
        """Return the chains whose name is not an installed model, as `team` has them, with their installed variants."""
        catalog = self._listed_catalog()
        return [
            VirtualModel(chain.name, chain.installed(catalog))
            for chain in self._chains.explicit(team)
            if key_of(chain.name) not in catalog
        ]

    def _listed_catalog(self) -> Mapping[str, ModelFacts]:
        """Return the models that lists are made of."""
        return self._decisions.catalog()

    def names(self, team: Team | None = None) -> Iterator[str]:
        """Yield the names that a request of `team` may be for: of its chains, and of the installed models."""
        yield from (chain.name for chain in self._chains.explicit(team))
        yield from (facts.name for facts in self._listed_catalog().values() if not is_derived(facts.name))

    def denied(self, name: str, team: Team | None = None) -> tuple[str, ...]:
        """Return the variants of the chain for `name` that `team` is denied."""
        return self._chains.rules_of(team).denied(name)

    def is_known(self, name: str) -> bool:
        """Return True for a name that has a chain: installed, derived, or configured for any team."""
        return self._chains.find(name, self._decisions.catalog()) is not None or self._chains.is_named(name)

    def is_hidden(self, name: str) -> bool:
        """Return True for a derived tag: lists omit them."""
        return is_derived(name)

    def display_name(self, name: str) -> str:
        """Return the variant of a derived tag, any other name unchanged."""
        return self._installed.display_name(name) if is_derived(name) else name

    async def show_name(self, name: str, team: Team | None = None) -> str:
        """Return the name for `/api/show` upstream: for a virtual model, the variant that would serve `team` now.

        Raises ModelNotFound if no variant of a virtual model is installed.
        """
        is_installed = key_of(name) in self._world.catalog
        found = None if is_installed else self._decisions.explain(name, team=team)
        if found is None:
            return name
        chain, decision = found
        if decision.chosen is not None:
            return decision.chosen.variant.model
        installed = chain.installed(self._world.catalog)
        if not installed:
            raise ModelNotFound(f"model '{name}' not found")
        return installed[-1]

    def client_expiry(self, name: str) -> datetime | None:
        """Return the expiry to show for a loaded model, None if the upstream's own value is right."""
        if not is_name(name):
            return None
        return self._keepalive.expiry(self._world.residents.get(self._installed.weights_of(name)))

    def catalog_changed(self) -> None:
        """Note that a model was pulled, created, copied or deleted."""
        self._installed.mark_changed()

    def is_ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether requests can be served, with details for `/readyz`."""
        gpus = self._world.cards.gpus
        mode = "no GPU: requests pass unchanged" if gpus == () else "verify" if gpus is None else "probe"
        is_ready = self._world.is_up and not self._backend.is_starting and not self._world.is_stale
        return is_ready, {
            "upstream": self._world.is_up,
            "error": self._world.last_error,
            "memory": mode,
            "stale": self._world.is_stale,
        }

    async def version(self) -> str:
        """Return the upstream's version, which clients use to enable features."""
        return self._world.version or await self._world.server.version()


def numbers_of(version: str) -> list[int]:
    """Return the numbers of a version, by which versions are compared, whatever an Ollama calls its own."""
    return [int(part) for part in version[:128].split("-")[0].split(".") if part.isdecimal()]
