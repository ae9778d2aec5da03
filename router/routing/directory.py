"""What there is by name, as clients see it: installed models, chains that are none, hidden tags, expiry, readiness.

All of the API that is no inference asks here; nothing here loads, unloads or books anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from router.backend.backend import Backend
from router.core.ollama.derived_names import is_derived
from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest
from router.errors import ModelNotFound
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.chains import Chains
from router.routing.decisions import Decisions


@dataclass(frozen=True, slots=True)
class VirtualModel:
    """A chain whose name is no installed model, as the lists show it."""

    name: str
    variants: tuple[str, ...]


class Directory:
    """See the module."""

    def __init__(self, backend: Backend, chains: Chains, decisions: Decisions) -> None:
        self._world = backend.world
        self._installed = backend.installed
        self._chains = chains
        self._decisions = decisions
        self._keepalive = backend.keepalive
        self._relay = backend.relay

    async def forward(self, request: UpstreamRequest) -> UpstreamResponse:
        """A request that is not routed (management, lists), as it is."""
        return await self._relay.open(request)

    def virtual_models(self) -> list[VirtualModel]:
        """Chains that are no installed model, with those of their variants that are installed."""
        catalog = self._world.catalog
        return [
            VirtualModel(chain.name, chain.installed(catalog))
            for chain in self._chains.explicit()
            if key_of(chain.name) not in catalog
        ]

    def is_known(self, name: str) -> bool:
        """True for a name that has a chain: installed, configured, or derived."""
        return self._chains.find(name, self._world.catalog) is not None

    def is_hidden(self, name: str) -> bool:
        """True for derived tags, which no list shows."""
        return is_derived(name)

    def shown_name(self, name: str) -> str:
        """The variant that a derived tag stands for; any other name as it is."""
        return self._installed.shown(name) if is_derived(name) else name

    async def show_name(self, name: str) -> str:
        """The name that `/api/show` of `name` asks upstream for: the variant that would serve a virtual one."""
        key = key_of(name)
        if key in self._world.catalog or (chain := self._chains.find(name, self._world.catalog)) is None:
            return name
        chosen = self._decisions.decide_afresh(InferenceRequest(name), chain).chosen
        if chosen is not None:
            return chosen.variant.model
        installed = chain.installed(self._world.catalog)
        if not installed:
            raise ModelNotFound(f"model '{name}' not found")
        return installed[-1]

    def client_expiry(self, name: str) -> datetime | None:
        """When clients are told that a resident expires; None: as the upstream says."""
        return self._keepalive.expiry(self._world.residents.get(self._installed.weights_of(name)))

    def catalog_changed(self) -> None:
        """Something was pulled, created, copied or deleted."""
        self._installed.has_changed()

    def is_ready(self) -> tuple[bool, dict[str, object]]:
        """Whether requests can be served, and how (for `/readyz`)."""
        gpus = self._world.cards.gpus
        mode = "no GPU: requests pass unchanged" if gpus == () else "verify" if gpus is None else "probe"
        return self._world.is_up, {"upstream": self._world.is_up, "error": self._world.last_error, "memory": mode}

    async def version(self) -> str:
        """The upstream's version (clients gate on it)."""
        return self._world.version or await self._world.server.version()
