"""A request's body, under its limits: size, idle time, total time, and zstd where Ollama takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import zstandard

from router.errors import BadRequest, BodyTooLarge, RequestTimeout, UnsupportedEncoding

Receive = Callable[[], Awaitable[dict[str, Any]]]

MAX_WINDOW_BYTES = 8 << 20
_CHUNK_BYTES = 256 << 10


class ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


async def read_body(receive: Receive, *, limit_bytes: int, idle_s: float, total_s: float) -> bytes:
    """The whole body. Raises BodyTooLarge with the first byte too many, RequestTimeout, or ClientGone."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + total_s
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            async with asyncio.timeout_at(min(until_s, loop.time() + idle_s)):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if part := message.get("body"):
                size += len(part)
                if size > limit_bytes:
                    raise too_large(limit_bytes)
                parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise RequestTimeout("the request's body did not arrive in time") from None


class BodyStream:
    """A body that is passed on as it comes in (uploads): an async iterator with an idle limit and none on its size."""

    def __init__(self, receive: Receive, idle_s: float) -> None:
        self._receive = receive
        self._idle_s = idle_s
        self._ended = False

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._idle_s):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout("the request's body did not arrive in time") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._ended = not message.get("more_body")
        return bytes(message.get("body", b""))


def too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request's body is larger than {limit_bytes} bytes")


def decoded(body: bytes, encoding: bytes, *, takes_zstd: bool, limit_bytes: int) -> bytes:
    """The body behind a Content-Encoding. Ollama takes zstd on `/v1/*` and ignores the header everywhere else.

    A label on a body that plainly is JSON is ignored as well (recorded: http-002). Raises BadRequest, BodyTooLarge
    (at most `limit_bytes` come out) or UnsupportedEncoding.
    """
    encoding = encoding.strip().lower()
    if takes_zstd and encoding == b"zstd":
        return _unzstd(body, limit_bytes)
    if encoding in (b"", b"identity") or body.lstrip()[:1] in (b"{", b""):
        return body
    raise UnsupportedEncoding(f"unsupported content encoding: {encoding.decode('latin-1')}")


def _unzstd(body: bytes, limit_bytes: int) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(body, read_across_frames=True)
    parts: list[bytes] = []
    size = 0
    try:
        while part := reader.read(_CHUNK_BYTES):
            size += len(part)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            parts.append(part)
    except zstandard.ZstdError as exc:
        magic = not body.startswith(b"\x28\xb5\x2f\xfd")
        raise BadRequest("invalid input: magic number mismatch" if magic else f"invalid input: {exc}") from exc
    return b"".join(parts)
