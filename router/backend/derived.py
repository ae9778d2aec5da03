"""Derived tags: how `/v1/*`, which cannot carry runner options, reaches a model loaded with explicit ones.

A tag made by `/api/create` from the variant with `parameters: {num_ctx, num_batch, main_gpu}` is a manifest only: it
shares the weights *and the runner* with native requests that carry the same options. The namespace is ours alone, so
no model of a user is ever overwritten; every tag in it is removed at start and at the end, also after a crash.
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
    """Makes derived tags on demand, one creation per tag however many ask, and removes them."""

    def __init__(self, server: ModelServer, installed: Installed) -> None:
        self._server = server
        self._installed = installed
        self._made: dict[str, asyncio.Task[None]] = {}

    def forget(self, variant: str) -> None:
        """Its tags are gone upstream: they are to be made again."""
        for name in [name for name in self._made if self._installed.variant_behind(name) == variant]:
            del self._made[name]

    async def ensure(self, variant: str, digest: str, options: LoadOptions) -> str:
        """The name under which `/v1/*` reaches `variant` with `options`; made when it is missing."""
        wanted = parameters_of(options)
        if not wanted:
            return variant
        name = derived_name(variant, digest, options)
        making = self._made.get(name)
        if making is None or (making.done() and making.exception() is not None):
            making = self._made[name] = asyncio.create_task(self._make(name, variant, wanted))
        if not making.done():
            await asyncio.shield(making)
        return name

    def made(self, variant: str, digest: str, options: LoadOptions) -> str | None:
        """The name under which `ensure` would find it; None where it is still to be made."""
        name = derived_name(variant, digest, options)
        making = self._made.get(name)
        is_there = making is not None and making.done() and not making.cancelled() and making.exception() is None
        return name if is_there else None

    async def _make(self, name: str, variant: str, wanted: dict[str, int]) -> None:
        self._installed.derive(name, variant)
        await self._server.create_derived(name, variant, wanted)

    async def remove_all(self) -> None:
        """Remove every derived tag of the server, also those that a router which died has left."""
        self._made.clear()
        with suppress(RouterError):
            for row in await self._server.tags():
                if is_derived(str(row.get("name", ""))):
                    with suppress(RouterError):
                        await self._server.delete(str(row["name"]))
