"""Derived tags: how requests to `/v1/*`, which cannot carry runner options, use a model loaded with explicit options.

A tag created by `/api/create` from the variant with `parameters: {num_ctx, num_batch, main_gpu}` is only a manifest: it
shares the weights *and the runner* with native requests that carry the same options. All derived tags are in a
namespace of the router, so no user's model is ever overwritten. They are removed at start and at the end; those that a
crash left behind, at the next start.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from router.adapters.ollama import ModelServer
from router.backend.installed import Installed
from router.core.ollama.derived_names import derived_name, is_derived, parameters_of
from router.core.ollama.runner import LoadOptions
from router.errors import RouterError


class DerivedTags:
    """Creates derived tags on demand, once per tag even under concurrent requests, and removes them."""

    def __init__(self, server: ModelServer, installed: Installed) -> None:
        self._server = server
        self._installed = installed
        self._made: dict[str, asyncio.Task[None]] = {}

    def forget(self, variant: str) -> None:
        """Forget the tags of `variant`, which are gone upstream; the next request creates them again."""
        for name in [name for name in self._made if self._installed.variant_of(name) == variant]:
            del self._made[name]

    async def ensure(self, variant: str, digest: str, options: LoadOptions) -> str:
        """Return the name under which `/v1/*` reaches `variant` with `options`; create the tag if it is missing."""
        wanted = parameters_of(options)
        if not wanted:
            return variant
        name = derived_name(variant, digest, options)
        making = self._made.get(name)
        if making is None or (making.done() and making.exception() is not None):
            making = self._made[name] = asyncio.create_task(self._make(name, variant, wanted))
        if not making.done():
            await asyncio.shield(making)  # other requests may wait for the same tag
        return name

    def existing(self, variant: str, digest: str, options: LoadOptions) -> str | None:
        """Return the name that `ensure` would return without creating a tag, None if it would create one."""
        name = derived_name(variant, digest, options)
        making = self._made.get(name)
        is_there = making is not None and making.done() and not making.cancelled() and making.exception() is None
        return name if is_there else None

    async def _make(self, name: str, variant: str, wanted: dict[str, int]) -> None:
        self._installed.derive(name, variant)  # before it exists, so that no list shows it as a user's model
        await self._server.create_derived(name, variant, wanted)

    async def remove_all(self) -> None:
        """Delete every derived tag of the server, also those that a crashed router left behind."""
        self._made.clear()
        with suppress(RouterError):
            for row in await self._server.tags():
                if is_derived(str(row.get("name", ""))):
                    with suppress(RouterError):
                        await self._server.delete(str(row["name"]))
