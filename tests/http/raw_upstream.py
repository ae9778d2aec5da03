"""A raw-socket upstream that sends exactly what a test scripts: half chunks, wrong lengths, nothing, resets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Script = Callable[["Visit"], Awaitable[None]]


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Visit:
    """One request on one connection of the upstream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes
    body: bytes
    upstream: RawUpstream
    number: int

    @property
    def target(self) -> bytes:
        return self.head.split(b" ", 2)[1]

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> float:
        """Wait until the other side has closed the connection; return the loop time of that."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        return asyncio.get_running_loop().time()


def answer(body: bytes, *, status: bytes = b"200 OK", type_: bytes = b"application/json") -> Script:
    """Return a script that sends one plain answer."""

    async def script(visit: Visit) -> None:
        await visit.say(
            b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, type_, len(body), body)
        )

    return script


@dataclass
class RawUpstream:
    """Reads each request (without `reads_bodies` only its head), then runs `script`, which may keep the connection."""

    script: Script
    port: int = 0
    tls: bool = False
    reads_bodies: bool = True
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    gone_at: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        number = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await self._body(reader, head.lower()) if self.reads_bodies else b""
                self.requests.append((head, body))
                number += 1
                await self.script(Visit(reader, writer, head, body, self, number))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        if b"transfer-encoding: chunked" in head:
            parts = []
            while (size := int(await reader.readline(), 16)) > 0:
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readline()
            return b"".join(parts)
        if b"content-length:" in head:
            return await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return b""


@asynccontextmanager
async def raw_upstream(
    script: Script, *, tls: ssl.SSLContext | None = None, reads_bodies: bool = True
) -> AsyncIterator[RawUpstream]:
    """Run an upstream on a free port of 127.0.0.1."""
    fake = RawUpstream(script, tls=tls is not None, reads_bodies=reads_bodies)
    tasks: set[asyncio.Task[None]] = set()

    async def track(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await fake.serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(track, "127.0.0.1", 0, ssl=tls, limit=1 << 20)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
