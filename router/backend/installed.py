"""What is installed on one Ollama: the catalog, which weights a name means, and the names behind derived tags."""

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
"""An unknown name makes us read the catalog again at most once in this time."""


class Installed:
    """See the module. `catalog` maps canonical names to facts, without derived tags."""

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
        """True when the catalog has not been read for `interval_s`, or may have changed since."""
        return self._now() - self._read_at_s >= self._interval_s

    def knows(self, name: str) -> bool:
        """True for an installed model, derived tags included."""
        return key_of(name) in self._all

    async def refresh(self) -> None:
        """Read tags and show of what is installed (cached by digest). Raises UpstreamError."""
        self._all = await self._reader.refresh()
        self.catalog = {key: facts for key, facts in self._all.items() if not is_derived(facts.name)}
        self._read_at_s = self._now()
        self._epoch.advance()

    async def look_up(self, name: str) -> None:
        """Read the catalog because `name` is unknown: it may have just been installed. At most once in LOOK_UP_S."""
        now_s = self._now()
        if now_s - self._read_at_s < LOOK_UP_S or now_s - self._looked_up_at_s < LOOK_UP_S:
            return
        self._looked_up_at_s = now_s
        looking = asyncio.create_task(self.refresh())
        with suppress(RouterError):
            await asyncio.shield(looking)

    def has_changed(self) -> None:
        """Something was pulled, created, copied or deleted: the next refresh of the world reads the catalog."""
        self._read_at_s = -math.inf

    def weights_of(self, name: str, digest: str = "") -> str:
        """The weights blob behind a name of `/api/ps`; the name's own key where the catalog does not know it."""
        key = key_of(name)
        facts = self._all.get(key)
        if facts is not None and digest and facts.digest and facts.digest != digest:
            return f"gone:{digest}"  # the name was pulled or created again while the old weights are loaded
        return facts.weights if facts is not None and facts.weights else key

    def by_weights(self, weights: str) -> ModelFacts | None:
        """The facts of an installed model with these weights."""
        return next((facts for facts in self.catalog.values() if facts.weights == weights), None)

    def derive(self, tag: str, variant: str) -> None:
        """The derived `tag` stands for `variant`."""
        self._stands_for[key_of(tag)] = variant

    def variant_behind(self, tag: str) -> str | None:
        """The variant that a derived tag of ours stands for."""
        return self._stands_for.get(key_of(tag))

    def shown(self, name: str) -> str:
        """The name to show for a name of ps: a derived tag's variant, any other name unchanged."""
        return self._stands_for.get(key_of(name), name)
