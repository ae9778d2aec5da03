"""One request to Ollama's control plane and its answer: bounded in time and bytes, and every failure an UpstreamError.

No client can cancel a call: each one runs in a task of its own that outlives its caller, because a connection that is
cancelled while it is established may be lost to httpx's pool. Only its deadline, and the router's end, cancel a call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from router.adapters.gathered import Gathered
from router.adapters.heads import BoundedTransport
from router.adapters.lean_httpx import httpx
from router.core.ollama.bounded import has_too_many, members, value
from router.core.ollama.listings import used_of_row
from router.core.ollama.mentions import without_derived
from router.errors import ModelNotFound, UpstreamError, UpstreamGone, UpstreamTimeout

T = TypeVar("T")

# Larger answers are decoded in a thread: those of /api/show contain the vocabulary, which is megabytes.
_INLINE_BYTES = 128 << 10
LARGE_BYTES = 4 << 20
"""Of what is longer one answer is held at a time: as pieces, as one body and as objects it takes several times its
bytes. The others stay where they are, in the connection and with Ollama."""

_PARTS_AT_ONCE = 500  # thousands of tiny ones may have come at one time: others get their turn in between
_HEADERS = {"Accept-Encoding": "identity"}  # a compressed answer could be far larger than its bytes
_UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=8)  # a hanging call holds up no other one

_READ = httpx.ByteStream(b"")
"""The stream of an answer that was read."""

Read = Callable[[bytes], dict[str, Any]]


class Refused(UpstreamError):
    """The upstream answered with an error; `text` is its own text."""

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"Ollama answered {path} with status {status}: {text}")
        self.status_code = status
        self.text = text


def read_object(content: bytes, kept: Callable[[Any], Any] = lambda item: item) -> dict[str, Any]:
    """Return the JSON object of a body, {} for other JSON. Raises msgspec.DecodeError for what is none, or too much.

    Of each element of a long body's lists `kept` returns what is kept.
    """
    if has_too_many(content):
        raise msgspec.DecodeError("too many values")
    try:
        if len(content) > _INLINE_BYTES:
            return {key: value(view, kept) for key, view in members(content).items()}
        found = msgspec.json.decode(content)
    except (UnicodeDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError("not readable JSON") from exc
    return found if isinstance(found, dict) else {}


def read_rows(content: bytes) -> dict[str, Any]:
    """Return the same of a body with rows of models; of those of a long one only what is used."""
    return read_object(content, used_of_row)


class _Turn:
    """The turn of a call to hold a large answer, which it takes when its answer turns out to be one."""

    def __init__(self, large: asyncio.Lock) -> None:
        self._large = large
        self._is_taken = False

    async def take(self) -> None:
        if not self._is_taken:
            await self._large.acquire()
            self._is_taken = True

    def end(self) -> None:
        if self._is_taken:
            self._large.release()


class ControlPlane:
    """Sends requests to one Ollama. `timeout_s` bounds a whole call, `max_bytes` its answer's body."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        connect_timeout_s: float,
        max_bytes: int,
        tls: ssl.SSLContext | None = None,
        authorization: str = "",
        socket_options: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_bytes = max_bytes
        headers = _HEADERS | ({"Authorization": authorization} if authorization else {})
        verify: ssl.SSLContext | bool = tls or base_url.startswith("https:")  # loading the authorities takes time
        transport = BoundedTransport(verify, _UNLIMITED, socket_options)
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=headers, transport=transport, trust_env=False, follow_redirects=False
        )
        self._calls: set[asyncio.Task[Any]] = set()
        self._decoding, self._large = asyncio.Lock(), asyncio.Lock()

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        read: Read = read_object,
    ) -> dict[str, Any]:
        """Return the JSON object of the answer, as `read` makes it from the body.

        Raises Refused for an answer that is an error, even with status 200; ModelNotFound for a 404 to a request with a
        model; UpstreamTimeout after `timeout_s`, however the answer comes; UpstreamError for all else that fails.
        """
        return await self._shielded(self._exchange(method, path, body, timeout_s or self._timeout_s, read))

    async def aclose(self) -> None:
        """Cancel the calls under way, then close the connections."""
        for call in tuple(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._http.aclose()

    async def _shielded(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        finally:
            del task  # its error refers to this frame: they would be left to the garbage collector, with all they hold

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio logs an exception that nobody retrieved, and the caller may have been cancelled

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, read: Read
    ) -> dict[str, Any]:
        turn = _Turn(self._large)
        try:
            response, content = await self._in_time(method, path, body, timeout_s, turn)
            return await self._answer(response, content, path, None if body is None else body.get("model"), read)
        finally:
            turn.end()

    async def _in_time(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, turn: _Turn
    ) -> tuple[httpx.Response, bytes]:
        """Return head and body. Raises UpstreamTimeout, or UpstreamError for all else that fails."""
        try:
            # Around everything: a server that sends a byte now and then never exceeds the timeout of a single read.
            async with asyncio.timeout(timeout_s):
                return await self._receive(method, path, body, timeout_s, turn)
        except (TimeoutError, httpx.TimeoutException):
            pass  # asyncio's refers to this task, and the task to what it ends with: that must not refer to it in turn
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as exc:
            reason = str(exc) or type(exc).__name__
            kind = UpstreamGone if _is_refused(exc) else UpstreamError
            raise kind(f"cannot reach Ollama at {self._http.base_url}: {reason}") from exc
        raise UpstreamTimeout(f"Ollama at {self._http.base_url} did not answer {method} {path} in time")

    async def _receive(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, turn: _Turn
    ) -> tuple[httpx.Response, bytes]:
        """Return head and body. Raises UpstreamError for a body that is not read to its end."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        timeout = httpx.Timeout(timeout_s, connect=min(self._connect_timeout_s, timeout_s))
        async with self._http.stream(method, path, content=content, headers=headers, timeout=timeout) as response:
            received = await self._body(response, path, turn)
        # It and its stream refer to each other: in a minute of shows thousands of objects for the garbage collector.
        response.stream = _READ
        return response, await received.whole()

    async def _body(self, response: httpx.Response, path: str, turn: _Turn) -> Gathered:
        """Return the body. Raises UpstreamError as soon as it is too large."""
        received, parts = Gathered(), 0
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UpstreamError(f"Ollama's answer to {path} is in an encoding that was not asked for")
        async for part in response.aiter_raw():
            received.add(part)
            parts += 1
            if parts % _PARTS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if received.size > LARGE_BYTES:
                await turn.take()
            if received.size > self._max_bytes:
                raise UpstreamError(f"Ollama's answer to {path} is larger than {self._max_bytes} bytes")
        return received

    async def _answer(
        self, response: httpx.Response, content: bytes, path: str, model: str | None, read: Read
    ) -> dict[str, Any]:
        """Return the JSON object of an answer. Raises for an error in it, even with status 200."""
        try:
            found = await self._decode(content, read if response.is_success else read_object)
        except msgspec.DecodeError as exc:
            if response.is_success and content:
                raise UpstreamError(f"Ollama's answer to {path} cannot be read: {exc}") from exc
            found = {}
        error = found.get("error")
        if response.is_success and not error:
            return found
        text = _shown(str(error or content[:200].decode("utf-8", "replace") or response.reason_phrase)[:2000])
        if response.status_code == httpx.codes.NOT_FOUND and model is not None:
            raise ModelNotFound(text)
        raise Refused(path, response.status_code, text)

    async def _decode(self, content: bytes, read: Read) -> dict[str, Any]:
        if len(content) <= _INLINE_BYTES:
            return read(content)
        async with self._decoding:  # one at a time, because the objects take more memory than the bytes
            return await asyncio.to_thread(read, content)


def _is_refused(error: BaseException) -> bool:
    """Return True if the connection was refused; of several addresses, by each of them."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_refused, error.exceptions))
    under = error.__cause__ or error.__context__
    return isinstance(error, ConnectionRefusedError) or (under is not None and _is_refused(under))


def _shown(text: str) -> str:
    """Return Ollama's text without the names of derived tags: clients see it in errors."""
    return without_derived(text.encode("utf-8", "replace")).decode()
