"""Derived tags: how requests to `/v1/*`, which cannot carry runner options, use a model loaded with explicit options.

A tag created by `/api/create` from the variant with `parameters: {num_ctx, num_batch, main_gpu}` is only a manifest: it
shares the weights *and the runner* with native requests that carry the same options. All derived tags are in a
namespace of the router, so no user's model is ever overwritten, and each names the router that owns it.

A tag goes when nobody can use it any more (the rules are at `_due_in_s`). While it is there, Ollama does not free the
disk that its weights take. A deletion can make a look-up fail that runs at the same time, so tags are removed one by
one, in moments without a load and without a request that has just been sent; only where a client waits for it, at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from router.adapters.ollama import ModelServer
from router.backend.digests import digests_of, pieces_of
from router.backend.installed import Installed
from router.config import Config
from router.core.ollama.derived_names import derived_name, is_derived, owner_in, parameters_of, usable
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions
from router.errors import RouterError

UNUSED_S = 10.0
"""A tag without an owner is removed when Ollama has run nothing on its weights for this long."""

ORPHAN_S = 120.0
"""Another router's tag is removed when its model has been gone for this long: its owner would have noticed by now."""

CALM_S = 0.25
"""Tags are removed when no request was sent for this long, because Ollama has found the models of earlier ones."""

MAX_WAIT_S = 30.0
"""Longest wait for such a moment, per tag."""

POLL_S = 0.05

MOST_TAGS = 500
"""Tags that one reading of the catalog is judged by; a list with more of them is no router's doing."""

OTHERS = 16
"""Other routers that are named at most: one that keeps nothing has another mark after each restart."""


class Replaced(Exception):
    """The variant has been deleted or replaced since the request was decided: it must be decided again."""


def owner_of(config: Config) -> str:
    """Return the owner's mark in the names of this router's tags: equal after a restart, different for another router.

    It is computed from the host's name, the address of the listener and the path of the store. A router that takes any
    free port and keeps nothing has no identity; it gets a new mark at each start.
    """
    if not config.listen.port and config.store.path == ":memory:":
        return secrets.token_hex(3)
    parts = (socket.gethostname(), config.listen.host, config.listen.port, config.store.path)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]


class _Made(NamedTuple):
    """A tag that was asked for: of which variant, and the task that makes it."""

    variant: str
    task: asyncio.Task[None]

    @property
    def is_there(self) -> bool:
        """True if it was made."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None


class DerivedTags:
    """Creates derived tags on demand, once per tag even under concurrent requests, and removes them.

    `owner` is the mark of this router. `is_quiet` returns False while a load is asked for or waited for; `is_loaded`
    returns whether Ollama runs something on the given weights.
    """

    def __init__(
        self,
        server: ModelServer,
        installed: Installed,
        owner: str = "",
        is_quiet: Callable[[], bool] = lambda: True,
        is_loaded: Callable[[str], bool] = lambda _weights: False,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._server = server
        self._installed = installed
        self._owner = owner
        self._is_quiet = is_quiet
        self._is_loaded = is_loaded
        self._report = report
        self._earlier: frozenset[str] | None = None  # tags at the last reading of the catalog
        self._others: set[str] = set()  # marks of other routers that have made a tag since the first reading
        self._made: dict[str, _Made] = {}
        self._useless_since_s: dict[str, float] = {}  # tags of others that nobody seems to use → since when
        self._turn = asyncio.Lock()  # of creations and removals
        self._has_news = asyncio.Event()
        self._sent_at_s = -math.inf
        self._now = asyncio.get_running_loop().time

    # --- tags for requests -------------------------------------------------------------------------------------

    def forget(self, variant: str) -> None:
        """Forget the tags of `variant`, which are gone upstream; the next request creates them again."""
        for name in [name for name, made in self._made.items() if made.variant == variant]:
            del self._made[name]

    def forget_all(self) -> None:
        """Forget all tags: those that no request asks for again are removed."""
        self._made.clear()
        self._has_news.set()

    async def ensure(self, variant: str, digest: str, options: LoadOptions) -> str:
        """Return the name under which `/v1/*` reaches `variant` with `options`; create the tag if it is missing.

        Raises Replaced if the variant is not what was decided for.
        """
        wanted = parameters_of(options)
        if not wanted:
            return variant
        name = derived_name(variant, digest, options, self._owner)
        made = self._made.get(name)
        if made is None or (made.task.done() and made.task.exception() is not None):
            made = self._made[name] = _Made(variant, asyncio.create_task(self._make(name, variant, wanted)))
        if not made.task.done():
            await asyncio.shield(made.task)  # other requests may wait for the same tag
        return name

    def existing(self, variant: str, digest: str, options: LoadOptions) -> str | None:
        """Return the name that `ensure` would return without creating a tag, None if it would create one."""
        name = derived_name(variant, digest, options, self._owner)
        made = self._made.get(name)
        return name if made is not None and made.is_there else None

    def note_request(self, now_s: float) -> None:
        """Note that a request is being sent: Ollama is about to look up its model."""
        self._sent_at_s = now_s

    async def _make(self, name: str, variant: str, wanted: dict[str, int]) -> None:
        async with self._turn:
            # Before it exists, so that no list shows it as a user's model; but after a removal, which would undo it.
            self._installed.derive(name, variant)
            listed = await digests_of(await self._server.tags())
            if key_of(name) in listed:  # left by a router with our mark that was killed
                return
            await self._check(variant, listed)
            await self._server.create_derived(name, variant, wanted)

    async def _check(self, variant: str, listed: Mapping[str, str]) -> None:
        """Raise Replaced unless the variant is installed as the catalog has it: Ollama would pull a missing one."""
        key = key_of(variant)
        known = self._installed.catalog.get(key)
        if key not in listed or (known is not None and known.digest != listed[key]):
            with suppress(RouterError):
                await self._installed.refresh()
            raise Replaced

    # --- removal -----------------------------------------------------------------------------------------------

    def note_catalog(self) -> None:
        """Note that the catalog was read: tags may have become useless."""
        self._has_news.set()

    async def watch(self) -> None:
        """Remove what is useless after each reading of the catalog, until cancelled."""
        again_s: float | None = None
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), again_s)
            self._has_news.clear()
            again_s = None
            with suppress(RouterError):  # the next reading of the catalog may do better
                again_s = await self.tidy()

    async def tidy(self, *, is_waited_for: bool = False) -> float | None:
        """Remove the tags in the catalog that nobody can use; return when to look again, in seconds.

        With `is_waited_for` only this router's are removed, but at once.
        """
        names = dict.fromkeys(islice(self._installed.derived(), MOST_TAGS))
        self._note_others(names)
        self._useless_since_s = {name: since for name, since in self._useless_since_s.items() if name in names}
        live = usable(names, await pieces_of(self._installed.digests())) if names else set()
        waits_s = {name: self._due_in_s(name, is_live=name in live) for name in names}
        for name, wait_s in waits_s.items():
            if wait_s is None or wait_s > 0 or (is_waited_for and not self._is_own(name)):
                continue
            if not is_waited_for:
                await self._calm()
            await self._remove(name, is_live=name in live)
        return min((wait_s for wait_s in waits_s.values() if wait_s is not None and wait_s > 0), default=None)

    def _note_others(self, names: Iterable[str]) -> None:
        """Note routers that make tags while this one runs; tags from before may be leftovers."""
        now = frozenset(names)
        new, self._earlier = now - (now if self._earlier is None else self._earlier), now
        for owner in sorted({owner_in(name) for name in new} - {"", self._owner} - self._others):
            if len(self._others) >= OTHERS:
                return
            self._others.add(owner)
            self._report(_another(owner))

    def notes(self) -> list[str]:
        """Return what an operator should know of other routers before the same Ollama, as sentences."""
        return [_another(owner) for owner in sorted(self._others)]

    def _due_in_s(self, name: str, *, is_live: bool) -> float | None:
        """Return the seconds until a tag may be removed; None if it is in use, as far as is known.

        1. Our own: at once, unless it was made or found for a request and its model is still the same.
        2. Without an owner (made by an older version): at once if its model is gone; else when Ollama has run nothing
           on its weights for a while. A router that still uses it makes it again.
        3. Another router's: its owner removes it; if the model has been gone for long, the owner has gone too.
        """
        if self._is_own(name):
            return None if is_live and name in self._made else 0.0
        has_owner = bool(owner_in(name))
        if is_live and (has_owner or self._is_loaded(self._installed.weights_of(name))):
            self._useless_since_s.pop(name, None)
            return None
        if not (has_owner or is_live):
            return 0.0
        since_s = self._useless_since_s.setdefault(name, self._now())
        return since_s + (ORPHAN_S if has_owner else UNUSED_S) - self._now()

    async def _calm(self) -> None:
        """Wait for a moment in which no load is asked for and no request has just been sent, for `MAX_WAIT_S`."""
        deadline_s = self._now() + MAX_WAIT_S
        while True:
            now_s = self._now()
            if now_s >= deadline_s or (self._is_quiet() and now_s - self._sent_at_s >= CALM_S):
                return
            await asyncio.sleep(POLL_S)

    async def _remove(self, name: str, *, is_live: bool) -> None:
        async with self._turn:
            is_used = is_live and self._is_own(name) and name in self._made  # a request has asked for it meanwhile
            if is_used or not self._installed.knows(name):
                return
            self._made.pop(name, None)
            with suppress(RouterError):
                await self._server.delete(name)
            self._installed.underive(name)

    async def remove_all(self) -> None:
        """Delete this router's tags from the server, and those without an owner whose models are gone."""
        self._made.clear()
        with suppress(RouterError):
            rows = await self._server.tags()
            names = [name for row in rows if is_derived(name := str(row.get("name", "")))]
            listed = await digests_of(rows)
            installed = {name: digest for name, digest in listed.items() if not is_derived(name)}
            live = usable(names, await pieces_of(installed))
            for name in names:
                if self._is_own(name) or (name not in live and not owner_in(name)):
                    with suppress(RouterError):
                        await self._server.delete(name)

    def _is_own(self, name: str) -> bool:
        return owner_in(name) == self._owner


def _another(owner: str) -> str:
    return f"another router uses the same Ollama (its derived tags name it as -o{owner}): they take turns for the cards"
