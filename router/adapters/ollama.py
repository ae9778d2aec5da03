"""Ollama's control plane: lists of models, loads, unloads and tags. The data path is `router/http/client`.

No client can cancel a call: each one runs in a task of its own that outlives its caller, because httpx's pool leaks
connections under cancellation. Only this module and the probe that reads a URL import httpx.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx
import msgspec

from router.adapters.catalog import CatalogReader
from router.core.ollama.runner import LoadOptions
from router.errors import LoadFailed, ModelNotFound, UpstreamError, UpstreamTimeout

__all__ = ["CatalogReader", "ModelServer", "OllamaClient", "PsRow"]

_SHOW_TIMEOUT_S = 60.0  # a verbose show reads the whole header of a GGUF file, possibly from a cold disk
_MANAGE_TIMEOUT_S = 60.0
# Larger answers are decoded in a thread: a verbose show contains the vocabulary, which is megabytes.
_INLINE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class PsRow:
    """A row of `/api/ps`. `expires_at` is in the year 2319 for a pinned model, and in year 1 if it was unreadable."""

    name: str
    digest: str
    size_bytes: int
    size_vram_bytes: int
    context_length: int
    expires_at: datetime
    details: Mapping[str, Any]

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> PsRow:
        return cls(
            name=str(row.get("name") or row.get("model") or ""),
            digest=str(row.get("digest") or ""),
            size_bytes=_int(row.get("size")),
            size_vram_bytes=_int(row.get("size_vram")),
            context_length=_int(row.get("context_length")),
            expires_at=_time(row.get("expires_at")),
            details=row.get("details") or {},
        )


class ModelServer(Protocol):
    """The control plane of one Ollama. All methods raise UpstreamError or UpstreamTimeout if it cannot be reached."""

    async def version(self) -> str:
        """Return the server's version, e.g. "0.33.0"."""

    async def tags(self) -> list[dict[str, Any]]:
        """Return the rows of `/api/tags` unchanged."""

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]:
        """Return the answer of `/api/show`. Raises ModelNotFound."""

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
        self, base_url: str, *, timeout_s: float = 10.0, connect_timeout_s: float = 2.0, load_timeout_s: float = 330.0
    ) -> None:
        self._load_timeout_s = load_timeout_s
        self._timeout = httpx.Timeout(timeout_s, connect=connect_timeout_s)
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=self._timeout, trust_env=False, follow_redirects=False
        )
        self._calls: set[asyncio.Task[Any]] = set()

    async def version(self) -> str:
        return str((await self._ask("GET", "/api/version")).get("version") or "")

    async def tags(self) -> list[dict[str, Any]]:
        return _rows(await self._ask("GET", "/api/tags"))

    async def show(self, name: str, *, verbose: bool = True) -> dict[str, Any]:
        return await self._ask("POST", "/api/show", {"model": name, "verbose": verbose}, _SHOW_TIMEOUT_S)

    async def ps(self) -> list[PsRow]:
        return [PsRow.parse(row) for row in _rows(await self._ask("GET", "/api/ps"))]

    async def load(self, name: str, options: LoadOptions, keep_alive_s: float, embedding: bool = False) -> None:
        values = {key: value for key, value in msgspec.structs.asdict(options).items() if value is not None}
        shift = values.pop("shift", None)  # not an option to Ollama, but a field of /api/generate
        body: dict[str, Any] = {"model": name, "keep_alive": _keep_alive(keep_alive_s), "options": values}
        if embedding:
            path, body = "/api/embed", body | {"input": []}
        else:
            path, body = "/api/generate", body | {"stream": False} | ({} if shift is None else {"shift": shift})
        try:
            await self._ask("POST", path, body, self._load_timeout_s)
        except _Refused as exc:
            raise LoadFailed(exc.text, status=exc.status_code) from exc

    async def unload(self, name: str) -> None:
        # Also for embedding models: /api/generate expires the runner before it checks the model's capabilities, whereas
        # /api/embed would load it first.
        await self._ask("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})

    async def create_derived(self, name: str, from_: str, parameters: Mapping[str, int]) -> None:
        body = {"model": name, "from": from_, "parameters": dict(parameters), "stream": False}
        await self._ask("POST", "/api/create", body, _MANAGE_TIMEOUT_S)

    async def delete(self, name: str) -> None:
        await self._ask("DELETE", "/api/delete", {"model": name}, _MANAGE_TIMEOUT_S)

    async def aclose(self) -> None:
        """Cancel the calls under way, then close the connections."""
        for call in tuple(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._http.aclose()

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        return await self._shielded(self._exchange(method, path, body, timeout_s))

    async def _shielded(self, call: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio logs an exception that nobody retrieved, and the caller may have been cancelled

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None
    ) -> dict[str, Any]:
        timeout = self._timeout if timeout_s is None else httpx.Timeout(timeout_s, connect=self._timeout.connect)
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            response = await self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        except httpx.TimeoutException as exc:
            raise UpstreamTimeout(f"Ollama at {self._http.base_url} did not answer {method} {path} in time") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            reason = str(exc) or type(exc).__name__
            raise UpstreamError(f"cannot reach Ollama at {self._http.base_url}: {reason}") from exc
        return await _answer(response, path, None if body is None else body.get("model"))


class _Refused(UpstreamError):
    """The upstream answered with an error; `text` is its own text."""

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"Ollama answered {path} with status {status}: {text}")
        self.status_code = status
        self.text = text


async def _answer(response: httpx.Response, path: str, model: str | None) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises for an error in it, even with status 200."""
    content = response.content
    try:
        found = _decode(content) if len(content) <= _INLINE_BYTES else await asyncio.to_thread(_decode, content)
    except msgspec.DecodeError as exc:
        if response.is_success and content:
            raise UpstreamError(f"Ollama's answer to {path} is not valid JSON") from exc
        found = {}
    error = found.get("error")
    if response.is_success and not error:
        return found
    text = str(error or response.text[:200] or response.reason_phrase)
    if response.status_code == httpx.codes.NOT_FOUND and model is not None:
        raise ModelNotFound(text)
    raise _Refused(path, response.status_code, text)


def _decode(content: bytes) -> dict[str, Any]:
    found = msgspec.json.decode(content)
    return found if isinstance(found, dict) else {}


def _rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows in `models` of an answer; Ollama sends null for an empty list."""
    return [row for row in answer.get("models") or () if isinstance(row, dict)]


def _keep_alive(seconds: float) -> int | float:
    """Return Ollama's keep_alive for a time in seconds; a negative number means indefinitely."""
    if math.isinf(seconds):
        return -1
    return int(seconds) if seconds == int(seconds) else seconds


def _int(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _time(value: Any) -> datetime:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
