"""What nobody should send, for the soak: an upstream that sometimes answers so, and the bodies of odd clients.

Both come from `tests/fuzz/corpus`.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import zstandard

CORPUS = Path(__file__).parent.parent / "tests" / "fuzz" / "corpus"
MOST_BYTES = 300_000
"""Larger inputs keep the simulator busy for longer than the router."""

ODD_PATHS = ("/api/chat", "/api/generate", "/api/show", "/api/embed", "/v1/")
BEGINNINGS = (b"GET /", b"POST /", b"DELETE /", b"HEAD /")


def kept(surface: str) -> list[bytes]:
    """Return the inputs that are kept for a surface."""
    found = (zstandard.decompress(path.read_bytes()) for path in sorted((CORPUS / surface).glob("*.zst")))
    return [data for data in found if len(data) <= MOST_BYTES]


def odd_requests() -> list[bytes]:
    """Return odd requests that change no models: heads as they are, and bodies with a head."""
    found = kept("heads")
    for data in kept("bodies"):
        line, _, body = data.partition(b"\n")
        if line.decode().split(" ")[1].startswith(ODD_PATHS):
            head = b"%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            found.append(head % (line, len(body)) + body)
    return found


class HostileUpstream:
    """Passes bytes on to the Ollama at `port`; while `is_hostile` some requests get what is kept, or nothing."""

    def __init__(self, port: int, rng: random.Random, share: float = 0.3) -> None:
        self.is_hostile = False
        self.counts = {"passed on": 0, "odd answers": 0}
        self._port, self._rng, self._share = port, rng, share
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._lists = [head % len(data) + data for data in (*kept("ps"), *kept("show"))]
        self._answers = [data.partition(b"\n")[2] for data in kept("answers")]
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of the router."""
        with suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
            back = asyncio.create_task(_copy(up_reader, writer))
            try:
                while data := await reader.read(1 << 16):
                    if self.is_hostile and data.startswith(BEGINNINGS) and self._rng.random() < self._share:
                        await self._answer(data, writer)
                        break
                    self.counts["passed on"] += data.startswith(BEGINNINGS)
                    up_writer.write(data)
                    await up_writer.drain()
            finally:
                back.cancel()
                up_writer.close()
        writer.close()

    async def _answer(self, asked: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer oddly: something kept, a part of it, a reset, or silence for a while."""
        self.counts["odd answers"] += 1
        is_list = asked.startswith((b"GET /api/ps", b"POST /api/show", b"GET /api/tags"))
        data = self._rng.choice(self._lists if is_list else self._answers)
        how = self._rng.choice(("whole", "whole", "cut", "reset", "silent"))
        if how == "reset":
            writer.transport.abort()
        elif how == "silent":
            await asyncio.sleep(self._rng.random() * 3)
        else:
            writer.write(data if how == "whole" else data[: self._rng.randrange(len(data))])
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
