"""What the edge needs of a directory: be there one backend, several, or the nodes of a front."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from router.core.teams.team import Team
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.routing.directory import Managed, VirtualModel


class Readable(Protocol):
    """What answers requests for lists and metadata: one backend or node, or any of them."""

    @property
    def name(self) -> str:
        """Its name."""

    async def read(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request for a list or for metadata."""


class Source(Readable, Protocol):
    """One backend or node, as lists are read from it and models managed on it."""

    def display_name(self, name: str) -> str:
        """Return the name to show for a loaded model."""

    def client_expiry(self, name: str) -> datetime | None:
        """Return the expiry to show for a loaded model, None if the upstream's own value is right."""

    async def forward(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request that manages models, unchanged."""


class Directing(Readable, Protocol):
    """Answers questions about names; see `Directory`."""

    @property
    def has_several(self) -> bool:
        """True if answers say which backend they are from."""

    async def settled(self) -> None:
        """Return when it is known which models there are and which of several answer, or soon after the start."""

    def sources(self, kind: str = "") -> Sequence[Source]:
        """Return those whose lists are shown by a route of this kind: one, unless it `has_several`."""

    async def shown_by(self, name: str, team: Team | None = None) -> tuple[Source, str]:
        """Return what shows a model, and the name for it there."""

    def targets(self, what: Managed, asked: str = "") -> Sequence[Source]:
        """Return where models are managed."""

    def virtual_models(self, team: Team | None = None) -> list[VirtualModel]:
        """Return the chains whose name is not an installed model."""

    def is_known(self, name: str) -> bool:
        """Return True for a name that has a chain."""

    def is_hidden(self, name: str) -> bool:
        """Return True for a name that lists omit."""

    def catalog_changed(self) -> None:
        """Note that models may have changed."""

    def is_ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether requests can be served, with details for `/readyz`."""

    async def version(self) -> str:
        """Return Ollama's version, which clients use to enable features."""
