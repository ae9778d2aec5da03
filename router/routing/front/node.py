"""One node as a front reaches it: its connections, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from router.backend.backend import SMALLEST_POOL, relay_to
from router.backend.endpoint import Endpoint
from router.config import BackendSection, Config
from router.core.nodes.state import NO_MODELS, OLLAMA_SILENT, Models
from router.core.nodes.view import NodeView
from router.http.client.pool import HttpRelay

CONNECT_S, FIRST_VIEW_S, SILENT_S = 1.0, 1.0, 3.0
"""A stream of views is begun again if it cannot be opened, has no beginning or is silent for longer than this."""

READING = "its state is being read"


@dataclass(frozen=True, slots=True)
class Links:
    """The connections to one node: for requests to models, for lists and what manages models, and for its views."""

    requests: HttpRelay
    lists: HttpRelay
    views: HttpRelay

    @staticmethod
    def to(endpoint: Endpoint, section: BackendSection, config: Config) -> Links:
        """Return the connections to an endpoint."""
        limits = config.limits
        reserve = min(limits.pool_reserve, limits.pool // SMALLEST_POOL)
        return Links(
            relay_to(endpoint, section, config, limits.pool - reserve, reserve),
            relay_to(endpoint, section, config, limits.list_pool),
            HttpRelay(
                endpoint.url,
                tls=endpoint.tls,
                tls_name=endpoint.tls_name,
                authorization=endpoint.authorization,
                connect_timeout_s=CONNECT_S,
                first_byte_timeout_s=FIRST_VIEW_S,
                idle_timeout_s=SILENT_S,
                pool_size=2,
                pool_wait_s=CONNECT_S,
            ),
        )

    async def aclose(self) -> None:
        """Close the unused connections."""
        for relay in (self.requests, self.lists, self.views):
            await relay.aclose()


class Node:
    """A node that was found. `key` tells it from others, `name` is what clients see: its own, once that is known.

    `why_out` is why no request goes there, "" if nothing speaks against it.
    """

    def __init__(self, key: str, url: str, links: Links) -> None:
        self.key, self.url, self.links = key, url, links
        self.name = self.address = urlsplit(url).netloc
        self.view: NodeView | None = None
        self.models: Models = NO_MODELS
        self.seen_s = 0.0
        self.why_out = READING

    @property
    def ollama(self) -> str:
        """The version of its Ollama, "" if it is not known."""
        return self.view.ollama if self.view is not None else ""

    @property
    def is_called_otherwise(self) -> bool:
        """True if clients see it by another name than it has itself, since another node has that."""
        return self.view is not None and not self.why_out and self.name != self.view.name

    @property
    def silence(self) -> str:
        """Why it or its Ollama does not answer, "" if both do; a node that drains does answer."""
        return self.why_out or ("" if self.view is None or self.view.is_up else OLLAMA_SILENT)

    @property
    def lacks_models(self) -> bool:
        """True if its catalog is another one than that which was read."""
        view, models = self.view, self.models
        if view is None:
            return False
        return (view.catalog_digest, view.learned_digest) != (models.catalog_digest, models.learned_digest)

    def is_newer(self, view: NodeView) -> bool:
        """Return whether a view is newer than the one that is known: views of one start of a node are numbered."""
        return self.view is None or self.view.boot_id != view.boot_id or self.view.seq <= view.seq

    def take_view(self, view: NodeView, now_s: float, name: str) -> None:
        """Set what it says of itself; with that it is back if it was out."""
        self.view, self.seen_s, self.name, self.why_out = view, now_s, name, ""

    def take_models(self, models: Models) -> None:
        """Set its models."""
        self.models = models

    def leave_out(self, why: str) -> None:
        """Set that no request goes there until it says something again."""
        self.why_out = why
