"""The names that clients of a front see, and on which nodes models are managed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from router.core.ollama.names import is_name, key_of
from router.core.teams.team import Team
from router.errors import BadRequest, ModelNotFound
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.chains import Chains
from router.routing.directory import Managed, VirtualModel, numbers_of
from router.routing.fleet.managed import Uploads
from router.routing.front.members import Members
from router.routing.front.node import Node
from router.routing.ruled import RuledChain

MOST_SHOWN = 100
"""Nodes that `/readyz` and errors name; of more than that those that cannot be used."""

Best = Callable[[RuledChain], str | None]
"""Returns the variant of a chain that would serve a plain request now."""


class NodeSource:
    """One node, as lists are read from it and models managed on it."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.node.name

    @property
    def total_bytes(self) -> int:
        """The memory of its cards."""
        return sum(gpu.total_bytes for gpu in self.node.view.gpus) if self.node.view is not None else 0

    def has_model(self, name: str) -> bool:
        """Return whether it has a model of that name."""
        return is_name(name) and self.node.models.get(key_of(name)) is not None

    def display_name(self, name: str) -> str:
        """Return the name: the node has made it one to show."""
        return name

    def client_expiry(self, _name: str) -> datetime | None:
        """Return None: the node has made it that which its clients have asked for."""
        return None

    async def read(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request for a list or for metadata."""
        return await self.node.links.lists.open(request)

    async def forward(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request that manages models, unchanged."""
        return await self.node.links.requests.open(request)


class FrontDirectory:
    """Answers questions about names for the clients of a front; see `Directory`."""

    def __init__(self, members: Members, chains: Chains, best: Best, name: str) -> None:
        self._members = members
        self._chains = chains
        self._best = best
        self._uploads = Uploads()
        self.name = name

    @property
    def has_several(self) -> bool:
        """True: answers say which nodes they are from."""
        return True

    async def settled(self) -> None:
        """Return when something is known of the nodes."""
        await self._members.settled()

    def sources(self, kind: str = "") -> Sequence[NodeSource]:
        """Return the nodes whose lists are shown: of nodes with the same models one, for what is loaded all."""
        up = self._up()
        if kind != "ps":
            up = list({one.node.models.catalog_digest: one for one in reversed(up)}.values())
        return sorted(up, key=lambda one: one.name)

    def _up(self) -> list[NodeSource]:
        up = [NodeSource(node) for node in self._members.usable()]
        if not up:
            raise self._members.nobody()
        return up

    async def shown_by(self, name: str, team: Team | None = None) -> tuple[NodeSource, str]:
        """Return the node that shows a model: one that has it, or the variant that would serve its chain now."""
        await self.settled()
        if not self.is_known(name):
            await self._members.refreshed()
        up = self._up()
        if having := [one for one in up if one.has_model(name)]:
            return having[0], name
        chain = self._chains.find(name, self._members.index.catalog, rules=self._chains.rules_of(team))
        if chain is None:
            self._absent(name)
            return up[0], name
        installed = chain.installed(self._members.index.catalog)
        if not installed:
            self._members.check_not_away([key_of(variant.model) for variant in chain.variants])
            raise ModelNotFound(f"model '{name}' not found")
        variant = self._best(chain) or installed[-1]
        shows = next((one for one in up if one.has_model(variant)), None)
        if shows is None:
            self._members.check_not_away([key_of(variant.model) for variant in chain.variants])
        return shows or up[0], variant

    async def read(self, request: UpstreamRequest) -> UpstreamResponse:
        """Ask any node what is the same on all."""
        await self.settled()
        return await self._up()[0].read(request)

    def targets(self, what: Managed, asked: str = "") -> Sequence[NodeSource]:
        """Return the nodes on which models are managed: the one that is asked for, else where they belong.

        Raises BadRequest for a name of none, or UpstreamAway.
        """
        up, node = self._up(), self._members.named(asked) if asked else None
        if asked and node is None:
            names = ", ".join(sorted(one.name for one in up)[:MOST_SHOWN])
            raise BadRequest(f"X-Router-Backend: there is no node {asked[:64]!r}, only {names}")
        return self._uploads.targets(what, NodeSource(node) if node is not None else None, up, self._absent)

    def _absent(self, name: str) -> None:
        """Raise UpstreamAway for a model that only nodes have that cannot be used."""
        if is_name(name):
            self._members.check_not_away([key_of(name)])

    def virtual_models(self, team: Team | None = None) -> list[VirtualModel]:
        """Return the chains whose name is not an installed model, as `team` has them, with their installed variants."""
        catalog = self._members.index.catalog
        return [
            VirtualModel(chain.name, chain.installed(catalog))
            for chain in self._chains.explicit(team)
            if key_of(chain.name) not in catalog
        ]

    def is_known(self, name: str) -> bool:
        """Return True for a name that has a chain: installed on a node, or configured for any team."""
        return self._chains.find(name, self._members.index.catalog) is not None or self._chains.is_named(name)

    def is_hidden(self, _name: str) -> bool:
        """Return False: the nodes hide what is theirs."""
        return False

    def catalog_changed(self) -> None:
        """Note that models were managed: a node will soon tell that it has others."""
        self._members.expect_models()

    def is_ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether a node can be used, with how each of them is for `/readyz`."""
        nodes, usable = self._members.all(), {node.name for node in self._members.usable()}
        rows = nodes if len(nodes) <= MOST_SHOWN else [node for node in nodes if node.name not in usable][:MOST_SHOWN]
        why = {node.name: self._members.why_out(node) for node in rows}
        is_ready = bool(usable) and not self._members.is_starting
        return is_ready, {
            "upstream": bool(usable),
            "error": "" if usable else self._members.nobody().message,
            "memory": "nodes",
            "stale": False,
            "nodes": {"found": len(nodes), "usable": len(usable)},
            "backends": {name: {"ready": not error, "error": error} for name, error in why.items()},
        }

    async def version(self) -> str:
        """Return the lowest version of Ollama on the nodes: clients use it to enable features."""
        await self.settled()
        versions = [node.view.ollama for node in self._members.usable() if node.view is not None and node.view.ollama]
        if not versions:
            raise self._members.nobody()
        return min(versions, key=numbers_of)
