"""The catalog: facts about the installed models, read with `/api/tags` and one verbose `/api/show` per manifest digest.

A digest identifies its content, so each digest is shown once. A name that moves to another digest is shown again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

from cachetools import LRUCache

from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.errors import BadRequest, RouterError

_SHOWS_AT_ONCE = 4
_MAX_MODELS = 2048


class _Server(Protocol):
    """The part of a ModelServer that the catalog uses."""

    async def tags(self) -> list[dict[str, Any]]: ...

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]: ...


class CatalogReader:
    """Reads the facts of all installed models. Concurrent calls of `refresh` share one reading."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._known: LRUCache[tuple[str, str], ModelFacts] = LRUCache(_MAX_MODELS)
        self._by_digest: LRUCache[str, ModelFacts] = LRUCache(_MAX_MODELS)
        self._reading: asyncio.Task[Mapping[str, ModelFacts]] | None = None

    async def refresh(self) -> Mapping[str, ModelFacts]:
        """Return the facts by canonical name (`names.key_of`). Raises UpstreamError when `/api/tags` cannot be read.

        A model whose show fails gets coarse facts from its row, and is shown again at the next refresh. The facts of
        an unchanged model are the same object as before.
        """
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            # Retrieve the exception even if all callers were cancelled: asyncio logs one that nobody retrieved.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._reading)

    async def _read(self) -> Mapping[str, ModelFacts]:
        rows = {key: row for row in await self._server.tags() if (key := _key(row))}
        missing = {str(row.get("digest") or key): row for key, row in rows.items() if not self._is_known(key, row)}
        turn = asyncio.Semaphore(_SHOWS_AT_ONCE)
        failed = await asyncio.gather(*(self._show(digest, row, turn) for digest, row in missing.items()))
        coarse = {digest for digest in failed if digest}
        return MappingProxyType({key: self._facts(key, row, coarse) for key, row in rows.items()})

    def _is_known(self, key: str, row: Mapping[str, Any]) -> bool:
        return str(row.get("digest") or key) in self._by_digest

    async def _show(self, digest: str, row: dict[str, Any], turn: asyncio.Semaphore) -> str:
        """Read one model; return its digest if that failed, else ""."""
        async with turn:
            try:
                show = await self._server.show(str(row.get("model") or row.get("name")), verbose=True)
            except RouterError:
                return digest
            self._by_digest[digest] = ModelFacts.of_show(row, show)
        return ""

    def _facts(self, key: str, row: Mapping[str, Any], coarse: set[str]) -> ModelFacts:
        digest = str(row.get("digest") or key)
        shown = self._by_digest.get(digest)
        if shown is None or digest in coarse:
            return ModelFacts.of_show(row, {})
        name = str(row.get("name") or row.get("model"))
        facts = self._known.get((name, digest))
        if facts is None:
            facts = self._known[(name, digest)] = shown if shown.name == name else replace(shown, name=name)
        return facts


def _key(row: Mapping[str, Any]) -> str:
    try:
        return key_of(str(row.get("name") or row.get("model") or ""))
    except BadRequest:
        return ""
