"""The installed models of one Ollama: the catalog, the weights of a name, and the variants of derived tags."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from router.adapters.catalog import CatalogReader
from router.backend.epoch import Epoch
from router.core.ollama.derived_names import by_piece, is_derived, made_from
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.errors import RouterError

READ_S = 2.0
"""A reading that takes longer goes on in the background, and the last one counts meanwhile."""

AGAIN_S = 5.0
"""Pause before the catalog is read again after a reading that failed."""

MAX_EARLIER = 4096
"""Manifests whose weights are remembered after they were replaced."""

LOOK_UP_S = 1.0
"""Minimum time between two readings of the catalog that unknown names cause."""


class Installed:
    """The installed models. `catalog` maps canonical names to facts, without derived tags.

    `on_moved` is called with the old and the new weights of a model whose weights were unknown until it was shown.
    """

    def __init__(
        self,
        reader: CatalogReader,
        epoch: Epoch,
        interval_s: float,
        on_moved: Callable[[str, str], None] = lambda _old, _new: None,
    ) -> None:
        self.catalog: Mapping[str, ModelFacts] = {}
        self._reader = reader
        self._epoch = epoch
        self._interval_s = interval_s
        self._all: Mapping[str, ModelFacts] = {}  # the catalog with derived tags
        self._by_weights: dict[str, ModelFacts] = {}  # the first of those in the catalog with the same weights
        self._by_piece: dict[str, list[str]] | None = None  # names in the catalog, once they were needed
        self._stands_for: dict[str, str] = {}  # key of a derived tag → its variant
        self._earlier: dict[str, str] = {}  # digest of a manifest, also of one that was replaced → its weights
        self._read_at_s = self._looked_up_at_s = -math.inf
        self._has_read = False
        self._changes = self._read_changes = 0
        self._looking: asyncio.Task[None] | None = None
        self._on_moved = on_moved
        self._on_read: Callable[[], None] = lambda: None
        self._now = asyncio.get_running_loop().time
        reader.notify(lambda: self._take(reader.catalog()))

    def notify(self, *, on_read: Callable[[], None]) -> None:
        """Set the callback for each reading of the catalog."""
        self._on_read = on_read

    @property
    def is_known(self) -> bool:
        """True if the catalog has been read: nothing is known of it before."""
        return self._has_read

    @property
    def is_due(self) -> bool:
        """True if the catalog was last read `interval_s` ago or more, or may have changed since."""
        return self._now() - self._read_at_s >= self._interval_s

    def knows(self, name: str) -> bool:
        """Return True for an installed model, derived tags included."""
        return key_of(name) in self._all

    async def refresh(self) -> None:
        """Read the catalog (shows are cached by digest). Raises UpstreamError, unless an earlier reading can serve.

        A list that cannot be read does not mean that Ollama is away: what was read before counts until the next time.
        """
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        if not self._has_read:
            await asyncio.shield(reading)
            return
        # Until it is read or READ_S are over it is not due again, so that each reading of ps does not wait for it.
        self._read_again_in(AGAIN_S)
        await asyncio.wait([reading], timeout=READ_S)

    async def _read(self, *, is_fresh: bool = False) -> None:
        changes = self._changes
        self._take(await self._reader.refresh(is_fresh=is_fresh or changes != self._read_changes))
        self._read_changes = changes
        self._on_read()
        self._epoch.advance()  # even if nothing has changed: a derived tag may be gone, and destinations name it
        self._has_read = True
        self._read_at_s = self._now() if changes == self._changes else -math.inf

    def _read_again_in(self, pause_s: float) -> None:
        self._read_at_s = self._now() - self._interval_s + min(pause_s, self._interval_s)

    def _take(self, found: Mapping[str, ModelFacts]) -> None:
        before, self._all = self._all, found
        news = {key: facts for key, facts in found.items() if before.get(key) is not facts}
        if not news and len(before) == len(found):
            return
        shown = {key: facts for key, facts in news.items() if not is_derived(facts.name)}
        if len(before) == len(found) and news.keys() <= before.keys():  # of thousands a few are known better
            self.catalog = {**self.catalog, **shown}
        else:
            self.catalog = {key: facts for key, facts in found.items() if not is_derived(facts.name)}
        self._by_piece = None
        self._by_weights = {facts.weights: facts for facts in reversed(self.catalog.values())}
        self._earlier |= {facts.digest: facts.weights for facts in news.values() if facts.weights}
        for digest in list(self._earlier)[:-MAX_EARLIER]:
            del self._earlier[digest]
        self._epoch.advance()
        for key, facts in news.items():
            old = before.get(key)
            if old is not None and old.digest == facts.digest and old.weights != facts.weights:
                self._on_moved(old.weights, facts.weights)

    @property
    def is_reading(self) -> bool:
        """True while the facts of some models are being read."""
        return self._reader.is_reading

    def awaited(self, keys: Collection[str], patience_s: float | None = None) -> list[str]:
        """Return the keys of those models whose facts are still being read, and worth waiting for.

        That is until `patience_s` (default: `timeouts.facts_s`) after something began to wait for them.
        """
        return self._reader.awaited(keys, patience_s)

    async def read_first(self, keys: Collection[str], patience_s: float | None = None) -> None:
        """Read the facts of these models ahead of all others; return when `awaited` is empty."""
        if self.is_reading:
            await self._reader.read_first(keys, patience_s)

    async def aclose(self) -> None:
        """Stop reading."""
        await self._reader.aclose()

    async def look_up(self) -> None:
        """Read the catalog because a name is not in it, at most once per LOOK_UP_S: it may be just installed.

        The bound keeps clients that ask for unknown names from causing one reading per request.
        """
        now_s = self._now()
        if self._looking is None or self._looking.done():
            if now_s - self._read_at_s < LOOK_UP_S or now_s - self._looked_up_at_s < LOOK_UP_S:
                return
            self._looked_up_at_s = now_s
            # All of it, however long it takes: a name that is not in it is passed on unrouted.
            self._looking = asyncio.create_task(self._read(is_fresh=True))
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        with suppress(RouterError):
            await asyncio.shield(self._looking)  # others need the result even if this client leaves

    def mark_changed(self) -> None:
        """Make the next refresh of the world read the catalog: a model was pulled, created, copied or deleted."""
        self._changes += 1
        self._read_at_s = -math.inf

    def weights_of(self, name: str, digest: str = "") -> str:
        """Return the weights blob of a name in `/api/ps`; the name's own key if the catalog does not hold it."""
        key = key_of(name)
        facts = self._all.get(key)
        if facts is not None and digest and facts.digest and facts.digest != digest:
            # The tag was replaced while its model is loaded: that runner goes on, and serves the new manifest too if
            # this has the same weights.
            return self._earlier.get(digest, f"gone:{digest}")
        return facts.weights if facts is not None and facts.weights else key

    def weights_if_installed(self, name: str) -> str | None:
        """Return the weights of an installed model, None if it is not installed. Raises BadRequest."""
        return self.weights_of(name) if key_of(name) in self.catalog else None

    def by_weights(self, weights: str) -> ModelFacts | None:
        """Return the facts of an installed model with these weights, None if there is none."""
        return self._by_weights.get(weights)

    def derive(self, tag: str, variant: str) -> None:
        """Record that the derived `tag` stands for `variant`."""
        self._stands_for[key_of(tag)] = variant

    def variant_of(self, tag: str) -> str | None:
        """Return the variant that a derived tag stands for, None for any other name."""
        return self._stands_for.get(key_of(tag))

    def underive(self, tag: str) -> None:
        """Record that the derived `tag` is gone."""
        key = key_of(tag)
        self._stands_for.pop(key, None)
        self._all = {name: facts for name, facts in self._all.items() if name != key}

    def derived(self) -> list[str]:
        """Return the names of all derived tags that the server lists, whichever router made them."""
        return [facts.name for facts in self._all.values() if is_derived(facts.name)]

    def digests(self) -> dict[str, str]:
        """Return the digests of the manifests by the names of the installed models."""
        return {facts.name: facts.digest for facts in self.catalog.values()}

    def display_name(self, name: str) -> str:
        """Return the name to show for a name in ps: the variant of a derived tag, any other name unchanged.

        For another router's tag it is the installed model that the tag was made from, if there is one.
        """
        variant = self._stands_for.get(key_of(name))
        if variant is not None or not is_derived(name):
            return variant or name
        if self._by_piece is None:
            self._by_piece = by_piece(self.digests())
        return made_from(name, self._by_piece) or name
