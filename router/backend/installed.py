"""The installed models of one Ollama: the catalog, the weights of a name, and the variants of derived tags."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress

from router.adapters.catalog import CatalogReader
from router.backend.epoch import Epoch
from router.core.ollama.derived_names import is_derived
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.errors import RouterError

LOOK_UP_S = 1.0
"""Minimum time between two readings of the catalog that unknown names cause."""


class Installed:
    """The installed models. `catalog` maps canonical names to facts, without derived tags."""

    def __init__(self, reader: CatalogReader, epoch: Epoch, interval_s: float) -> None:
        self.catalog: Mapping[str, ModelFacts] = {}
        self._reader = reader
        self._epoch = epoch
        self._interval_s = interval_s
        self._all: Mapping[str, ModelFacts] = {}  # the catalog with derived tags
        self._stands_for: dict[str, str] = {}  # key of a derived tag → its variant
        self._read_at_s = self._looked_up_at_s = -math.inf
        self._now = asyncio.get_running_loop().time

    @property
    def is_due(self) -> bool:
        """True if the catalog was last read `interval_s` ago or more, or may have changed since."""
        return self._now() - self._read_at_s >= self._interval_s

    def knows(self, name: str) -> bool:
        """Return True for an installed model, derived tags included."""
        return key_of(name) in self._all

    async def refresh(self) -> None:
        """Read the catalog (shows are cached by digest). Raises UpstreamError."""
        self._all = await self._reader.refresh()
        self.catalog = {key: facts for key, facts in self._all.items() if not is_derived(facts.name)}
        self._read_at_s = self._now()
        self._epoch.advance()

    async def look_up(self) -> None:
        """Read the catalog because a name is not in it, at most once per LOOK_UP_S: it may be just installed.

        The bound keeps clients that ask for unknown names from causing one reading per request.
        """
        now_s = self._now()
        if now_s - self._read_at_s < LOOK_UP_S or now_s - self._looked_up_at_s < LOOK_UP_S:
            return
        self._looked_up_at_s = now_s
        looking = asyncio.create_task(self.refresh())  # others need the result even if this client leaves
        with suppress(RouterError):
            await asyncio.shield(looking)

    def mark_changed(self) -> None:
        """Make the next refresh of the world read the catalog: a model was pulled, created, copied or deleted."""
        self._read_at_s = -math.inf

    def weights_of(self, name: str, digest: str = "") -> str:
        """Return the weights blob of a name in `/api/ps`; the name's own key if the catalog does not hold it."""
        key = key_of(name)
        facts = self._all.get(key)
        if facts is not None and digest and facts.digest and facts.digest != digest:
            return f"gone:{digest}"  # the tag was replaced while its old weights are still loaded
        return facts.weights if facts is not None and facts.weights else key

    def weights_if_installed(self, name: str) -> str | None:
        """Return the weights of an installed model, None if it is not installed. Raises BadRequest."""
        return self.weights_of(name) if key_of(name) in self.catalog else None

    def by_weights(self, weights: str) -> ModelFacts | None:
        """Return the facts of an installed model with these weights, None if there is none."""
        return next((facts for facts in self.catalog.values() if facts.weights == weights), None)

    def derive(self, tag: str, variant: str) -> None:
        """Record that the derived `tag` stands for `variant`."""
        self._stands_for[key_of(tag)] = variant

    def variant_of(self, tag: str) -> str | None:
        """Return the variant that a derived tag stands for, None for any other name."""
        return self._stands_for.get(key_of(tag))

    def display_name(self, name: str) -> str:
        """Return the name to show for a name in ps: the variant of a derived tag, any other name unchanged."""
        return self._stands_for.get(key_of(name), name)
