"""Ollama's control plane: lists of models, loads, unloads and tags. The data path is `router/http/client`.

What a server leaves out of an answer is unknown, and what it sends in another type counts as left out.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from router.adapters.catalog import CatalogReader
from router.adapters.control import ControlPlane, Refused, read_rows
from router.adapters.load_bodies import embed_body, load_body
from router.adapters.manifests import Manifests
from router.core.ollama import show as shown
from router.core.ollama.listings import may_be_failed_listing
from router.core.ollama.runner import LoadOptions
from router.core.ollama.show_body import read_show
from router.errors import LoadFailed, ModelNotFound, UpstreamError

__all__ = ["CatalogReader", "ModelServer", "OllamaClient", "PsRow"]

_SHOW_TIMEOUT_S = 60.0  # a verbose show reads the whole header of a GGUF file, possibly from a cold disk
_MANAGE_TIMEOUT_S = 60.0
_MAX_CONTEXT = 1 << 40
_MOST_LOADED = 200  # no machine has so many runners; each row takes a while on the loop, and once a second
_MOST_LISTED = 10_000  # the same of installed models
_AGAIN_S = 0.05  # a listing that failed is repeated when the deletion that it met is over


@dataclass(frozen=True, slots=True)
class PsRow:
    """A row of `/api/ps`.

    `context_length` is None if the server does not report it (before 0.9.7). A size that it does not report counts as
    the other one: nothing says that the model is not fully on the GPU. `expires_at` is in the year 2319 for a pinned
    model, and in year 1 if it was unreadable.
    """

    name: str
    digest: str
    size_bytes: int
    size_vram_bytes: int
    context_length: int | None
    expires_at: datetime
    details: Mapping[str, Any]

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> PsRow:
        size, size_vram = row.get("size"), row.get("size_vram")
        return cls(
            name=shown.text(row.get("name")) or shown.text(row.get("model")),
            digest=shown.text(row.get("digest")),
            size_bytes=shown.size(size_vram if size is None else size),
            size_vram_bytes=shown.size(size if size_vram is None else size_vram),
            context_length=_context(row.get("context_length")),
            expires_at=_time(row.get("expires_at")),
            details=shown.mapping(row.get("details")),
        )


class ModelServer(Protocol):
    """The control plane of one Ollama. All methods raise UpstreamError or UpstreamTimeout if it cannot be reached."""

    async def version(self) -> str:
        """Return the server's version, e.g. "0.33.0"."""

    async def tags(self) -> list[dict[str, Any]]:
        """Return the rows of `/api/tags`; of a long list what is used of them (`listings.used_of_row`)."""

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]:
        """Return the used parts of the answer of `/api/show` (`show_body.read_show`). Raises ModelNotFound."""

    async def ps(self) -> list[PsRow]:
        """Return the loaded models. A model that is still loading is not among them."""

    async def load(self, name: str, options: LoadOptions, keep_alive_s: float, embedding: bool = False) -> None:
        """Load a model with exactly these options and an empty prompt; return when it is loaded. Raises LoadFailed."""

    async def unload(self, name: str) -> None:
        """Request an unload and return immediately; Ollama ignores it while the model is busy. Raises ModelNotFound."""

    async def create_derived(self, name: str, from_: str, parameters: Mapping[str, int]) -> None:
        """Create `name` from an installed model with other parameters; no weights are copied."""

    async def delete(self, name: str) -> None:
        """Delete a tag. Raises ModelNotFound."""

    async def aclose(self) -> None:
        """Cancel the calls under way and close the connections."""


class OllamaClient:
    """The ModelServer over HTTP."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 2.0,
        load_timeout_s: float = 330.0,
        max_bytes: int = 64 << 20,
        tls: ssl.SSLContext | None = None,
        authorization: str = "",
        socket_options: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self._load_timeout_s = load_timeout_s
        self._control = ControlPlane(
            base_url,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            max_bytes=max_bytes,
            tls=tls,
            authorization=authorization,
            socket_options=socket_options,
        )
        self._ask = self._control.ask
        self._manifests = Manifests()

    async def version(self) -> str:
        return shown.text((await self._ask("GET", "/api/version")).get("version"))

    async def tags(self) -> list[dict[str, Any]]:
        try:
            return await self._list("/api/tags", _MOST_LISTED)
        except Refused:  # a list that Ollama cannot make now is whole a moment later, whatever its text
            await asyncio.sleep(_AGAIN_S)
        return await self._list("/api/tags", _MOST_LISTED)

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]:
        body = {"model": name, "verbose": verbose}
        return await self._ask("POST", "/api/show", body, _SHOW_TIMEOUT_S, read_show)  # `Shows` asks again

    async def ps(self) -> list[PsRow]:
        return [PsRow.parse(row) for row in await self._list("/api/ps", _MOST_LOADED)]

    async def load(self, name: str, options: LoadOptions, keep_alive_s: float, embedding: bool = False) -> None:
        if embedding:
            path, body = "/api/embed", embed_body(name, options, keep_alive_s)
        else:
            path, body = "/api/generate", load_body(name, options, keep_alive_s) | {"stream": False}
        try:
            async with self._manifests.looking_up():
                await self._find("POST", path, body, self._load_timeout_s)
        except Refused as exc:
            raise LoadFailed(exc.text, status=exc.status_code) from exc

    async def unload(self, name: str) -> None:
        # Also for embedding models: /api/generate expires the runner before it checks the model's capabilities, whereas
        # /api/embed would load it first.
        async with self._manifests.looking_up():
            await self._find("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})

    async def create_derived(self, name: str, from_: str, parameters: Mapping[str, int]) -> None:
        body = {"model": name, "from": from_, "parameters": dict(parameters), "stream": False}
        async with self._manifests.changing():
            await self._find("POST", "/api/create", body, _MANAGE_TIMEOUT_S)

    async def delete(self, name: str) -> None:
        async with self._manifests.changing():
            await self._find("DELETE", "/api/delete", {"model": name}, _MANAGE_TIMEOUT_S)

    async def aclose(self) -> None:
        """Cancel the calls under way, then close the connections."""
        await self._control.aclose()

    async def _list(self, path: str, most: int) -> list[dict[str, Any]]:
        rows = _rows(await self._ask("GET", path, read=read_rows), path)
        if len(rows) > most:
            raise UpstreamError(f"Ollama's answer to {path} lists {len(rows)} models")
        return rows

    async def _find(
        self, method: str, path: str, body: Mapping[str, Any], timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Ask for something that makes Ollama list its manifests; once more if that may have failed for another's."""
        try:
            return await self._ask(method, path, body, timeout_s)
        except ModelNotFound:
            pass
        except Refused as refused:
            if not may_be_failed_listing(refused.status_code, refused.text.encode("utf-8", "replace")):
                raise
        await asyncio.sleep(_AGAIN_S)
        return await self._ask(method, path, body, timeout_s)


def _rows(answer: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """Return the rows in `models` of an answer; Ollama sends null for an empty list. Raises UpstreamError."""
    rows = answer.get("models")
    if "models" not in answer or (rows is not None and not isinstance(rows, list)):
        raise UpstreamError(f"Ollama's answer to {path} has no list of models")
    return [row for row in rows or () if isinstance(row, dict)]


def _context(value: Any) -> int | None:
    """Return a context in tokens, None if it is absent, 0 or not a possible number."""
    return int(value) if isinstance(value, int | float) and 1 <= value <= _MAX_CONTEXT else None


def _time(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
