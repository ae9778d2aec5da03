"""Heads of answers to httpx, bounded: whoever answers may send any number of interim ones before the real one.

Each of these takes as long to parse as a whole answer, and httpx takes all that one read has brought without a pause.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, cast

from router.adapters.lean_httpx import httpx

MOST_HEAD_BYTES = 16 << 10
"""Of all heads of one answer, interim ones included: that of Ollama has 200."""

STEP_BYTES = 4 << 10
"""Most bytes that are read at once before the head has ended."""


class Progress:
    """How far the answer to one request has come. `told` is a `trace` of httpx."""

    def __init__(self) -> None:
        self.is_in_head = False
        self.head_bytes = 0

    async def told(self, event: str, _info: Any) -> None:
        if event == "http11.receive_response_headers.started":
            self.is_in_head, self.head_bytes = True, 0
        elif event == "http11.receive_response_headers.complete":
            self.is_in_head = False


_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


class BoundedTransport(httpx.AsyncHTTPTransport):
    """A transport that raises httpx.RemoteProtocolError for heads of more than `MOST_HEAD_BYTES`."""

    def __init__(
        self,
        verify: ssl.SSLContext | bool,
        limits: httpx.Limits | None = None,
        socket_options: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        more = {"limits": limits} if limits is not None else {}
        super().__init__(verify=verify, trust_env=False, socket_options=socket_options, **more)  # type: ignore[arg-type]
        # There is no other way to say through what it reads; a test notices if this one ends.
        pool = cast("Any", self._pool)
        pool._network_backend = _Network(pool._network_backend)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        progress = Progress()
        request.extensions = {**request.extensions, "trace": progress.told}
        token = _progress.set(progress)
        try:
            return await super().handle_async_request(request)
        finally:
            _progress.reset(token)


class _Network:
    """What opens connections, and keeps the bytes of heads within their bound."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> _Stream:
        return _Stream(await self._network.connect_tcp(*args, **kwargs))


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def start_tls(self, *args: Any, **kwargs: Any) -> _Stream:
        return _Stream(await self._stream.start_tls(*args, **kwargs))

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        progress = _progress.get()
        if progress is None or not progress.is_in_head:
            return bytes(await self._stream.read(max_bytes, timeout))
        data = bytes(await self._stream.read(min(max_bytes, STEP_BYTES), timeout))
        progress.head_bytes += len(data)
        if progress.head_bytes > MOST_HEAD_BYTES:
            raise httpx.RemoteProtocolError(f"the answer's head is longer than {MOST_HEAD_BYTES} bytes")
        return data
