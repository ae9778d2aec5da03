"""For tests of the edge: a dispatcher without decisions, an edge on a real socket, and a raw client."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, cast

import pytest

from router.api.edge import Edge
from router.api.settings import EdgeSettings
from router.errors import UpstreamError
from router.http.client.pool import HttpRelay
from router.http.client.response import Relay, UpstreamRequest, UpstreamResponse
from router.http.server.limits import WireLimits
from router.http.server.listener import Listener
from router.routing import underway
from router.routing.answer import Answer, Released
from router.routing.call import Call
from router.routing.directory import Directory, VirtualModel
from router.routing.dispatch import Dispatcher
from router.routing.outcomes import Blocked

needs_pauses = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2),
    reason="this Python's own loop does not pause who writes too much (CVE-2024-12254); uvloop, for users, does",
)


@dataclass
class FakeDispatcher:
    """Relays every call unchanged, and is the directory as well.

    `before` is awaited first, and may wait, raise or count; `log` records the outcomes of releases. The chains `late`
    are known once it has settled.
    """

    relay: Relay
    before: Callable[[Call], Awaitable[None]] | None = None
    rename: tuple[bytes, bytes] | None = None
    virtual: list[VirtualModel] = field(default_factory=list)
    late: list[VirtualModel] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)
    expiries: dict[str, datetime] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)
    catalog_changes: int = 0
    ready: bool = True

    takes_at_once: ClassVar[bool] = False

    def start(self, call: Call, reply: underway.Reply) -> Sent | Blocked:
        """Send on a free connection if the test allows that and there is one; else continue in a task."""
        if not self.takes_at_once or self.before is not None:
            return Blocked("turn", asyncio.Event().wait)
        sent = Sent(self, call, reply)
        sent.upstream = self.relay.open_now(call.upstream(call.body), sent.on_head)
        if sent.upstream is None:
            return Blocked("connection", asyncio.Event().wait)
        self.calls.append(call)
        return sent

    def abandon(self, call: Call) -> None:
        """Do nothing: a call holds nothing here."""

    async def dispatch(self, call: Call, _blocked: Blocked | None = None) -> Answer:
        self.calls.append(call)
        if self.before is not None:
            await self.before(call)
        try:
            return self.answer(call, await self.relay.open(call.upstream(call.body)))
        except BaseException:
            self.released.append(Released("client_gone", phase="before_answer"))
            raise

    def answer(self, call: Call, upstream: UpstreamResponse) -> Answer:
        def on_release(released: Released) -> None:
            self.log.append(released.outcome)
            self.released.append(released)
            if call.on_end is not None:
                call.on_end(call, released, upstream.status)

        headers = [(b"x-router-model", call.request.model.encode("latin-1", "replace"))]
        left = call.limits_left
        call.served = call.request.model
        return Answer(upstream.status, headers, upstream, self.rename, limits_left=left, on_release=on_release)

    async def forward(self, request: UpstreamRequest) -> UpstreamResponse:
        return await self.relay.open(request)

    read = forward

    def virtual_models(self, _team: object = None) -> list[VirtualModel]:
        return self.virtual

    def is_hidden(self, name: str) -> bool:
        return name in self.hidden

    def display_name(self, name: str) -> str:
        return self.hidden.get(name, name)

    name, has_several = "fake", False

    async def settled(self) -> None:
        self.virtual, self.late = self.virtual + self.late, []

    def sources(self, _kind: str = "") -> tuple[FakeDispatcher, ...]:
        return (self,)

    def targets(self, _what: object, _asked: str = "") -> tuple[FakeDispatcher, ...]:
        return (self,)

    async def shown_by(self, name: str, team: object = None) -> tuple[FakeDispatcher, str]:
        return self, await self.show_name(name, team)

    async def show_name(self, name: str, _team: object = None) -> str:
        return next((chain.variants[0] for chain in self.virtual if chain.name == name), name)

    def client_expiry(self, name: str) -> datetime | None:
        return self.expiries.get(name)

    def catalog_changed(self) -> None:
        self.catalog_changes += 1

    def is_ready(self) -> tuple[bool, dict[str, object]]:
        return self.ready, {"upstream": self.ready}

    async def version(self) -> str:
        return "0.33.0"


class Sent(underway.Underway):
    """A request under way that was sent without a task."""

    def __init__(self, dispatcher: FakeDispatcher, call: Call, reply: underway.Reply) -> None:
        self.upstream: UpstreamResponse | None = None
        self._dispatcher, self._call, self._reply = dispatcher, call, reply

    def on_head(self) -> None:
        assert self.upstream is not None
        if self.upstream.status:
            self._reply(self._dispatcher.answer(self._call, self.upstream))
            return
        self._dispatcher.released.append(Released("upstream_error"))
        try:
            self.upstream.raise_error()
        except UpstreamError as error:
            self._reply(error)

    def give_up(self, *, is_gone: bool = True) -> None:
        assert self.upstream is not None
        self.upstream.close()
        self._dispatcher.released.append(Released("client_gone" if is_gone else "shutdown", phase="before_answer"))


@dataclass
class RunningEdge:
    """An edge that listens on a free port of 127.0.0.1."""

    edge: Edge
    listener: Listener
    dispatcher: FakeDispatcher

    @property
    def port(self) -> int:
        return self.listener.port


async def warm(relay: HttpRelay, connections: int = 4) -> None:
    """Open connections in advance, so that one is free."""
    with suppress(UpstreamError):
        for wire in await asyncio.gather(*(relay.connect() for _ in range(connections))):
            relay.give_back(wire)


@asynccontextmanager
async def running_edge(
    dispatcher: FakeDispatcher,
    settings: EdgeSettings | None = None,
    limits: WireLimits | None = None,
    *,
    report: Callable[[str], None] = lambda _text: None,
    **more: Any,
) -> AsyncIterator[RunningEdge]:
    """Run an edge in front of `dispatcher`; stop it at the end without a grace period. `report` takes its warnings."""
    edge = Edge(cast("Dispatcher", dispatcher), cast("Directory", dispatcher), settings, report=report, **more)
    listener = Listener(edge, limits=limits)
    await listener.start()
    if dispatcher.takes_at_once and isinstance(dispatcher.relay, HttpRelay):
        await warm(dispatcher.relay)
    try:
        yield RunningEdge(edge, listener, dispatcher)
    finally:
        await listener.stop()
        await dispatcher.relay.aclose()


@dataclass
class Reply:
    """An answer as a raw client reads it; `is_cut` if the connection ended before the answer was complete."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_cut: bool = False

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection to an edge, with access to its bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int, *, receive_buffer: int | None = None) -> RawClient:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 24 if receive_buffer is None else 1 << 12))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        *,
        host: str = "127.0.0.1",
    ) -> Reply:
        await self.send(request_bytes(method, target, body, headers, host=host))
        return await self.reply(is_head=method == "HEAD")

    async def reply(self, *, is_head: bool = False) -> Reply:
        """Read one answer by its own framing."""
        status, headers = await self.head()
        try:
            if is_head or status in (204, 304):
                return Reply(status, headers, b"")
            if headers.get("transfer-encoding") == "chunked":
                return Reply(status, headers, *await self._chunks())
            if "content-length" in headers:
                return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))
            return Reply(status, headers, await self.reader.read())
        except asyncio.IncompleteReadError as exc:
            return Reply(status, headers, exc.partial, is_cut=True)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw.strip().split("\r\n")
        pairs = [line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in lines]
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def _chunks(self) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        try:
            while (size := int(await self.reader.readline() or b"x", 16)) > 0:
                parts.append(await self.reader.readexactly(size))
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        except (ValueError, asyncio.IncompleteReadError, ConnectionError):
            return b"".join(parts), True
        return b"".join(parts), False

    async def is_closed(self, timeout_s: float = 2.0) -> bool:
        """Return True if the server closes the connection within `timeout_s`; further input is discarded."""
        try:
            async with asyncio.timeout(timeout_s):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close the connection with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def request_bytes(
    method: str,
    target: str,
    body: bytes | str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    *,
    host: str = "127.0.0.1",
) -> bytes:
    payload = body.encode() if isinstance(body, str) else body
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if payload is not None:
        lines.append(f"Content-Length: {len(payload)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (payload or b"")


@asynccontextmanager
async def client(port: int) -> AsyncIterator[RawClient]:
    raw = await RawClient.to(port)
    try:
        yield raw
    finally:
        raw.close()


@asynccontextmanager
async def server_that(
    answers: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]],
) -> AsyncIterator[str]:
    """Provide the URL of a server that reads a head on each connection, and then lets `answers` serve it."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answers(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
