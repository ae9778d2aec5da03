"""A proxy between a front and a node that loses what a test wants lost: as a bad cable or a full switch would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from tests.http.raw_upstream import reset


class FaultProxy:
    """Passes bytes on. `fault`: "" = none, "refuse" = connections are reset, "hang" = bytes go nowhere.

    With `only` it concerns connections whose first request has this path.
    """

    def __init__(self, url: str, only: bytes = b"") -> None:
        self._where = urlsplit(url)
        self._only = only
        self.port = 0
        self.fault = ""
        self.server: asyncio.Server | None = None
        self._healed = asyncio.Event()
        self._concerned: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def break_(self, fault: str) -> None:
        """Begin a fault; what is open is reset for "refuse"."""
        self.fault = fault
        self._healed.clear()
        if fault == "refuse":
            for writer in tuple(self._concerned):
                reset(writer)

    def close(self) -> None:
        """Refuse connections, and reset those that are open."""
        assert self.server is not None
        self.server.close()
        self.break_("refuse")

    def heal(self) -> None:
        """End the fault: what hangs goes on."""
        self.fault = ""
        self._healed.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.readuntil(b"\r\n")
            is_concerned = not self._only or self._only in first
            if is_concerned:
                self._concerned.add(writer)
            if is_concerned and self.fault == "refuse":
                reset(writer)
                return
            there, back = await asyncio.open_connection(self._where.hostname, self._where.port)
            back.write(first)
            try:
                await asyncio.gather(
                    self._pass(reader, back, is_concerned=is_concerned),
                    self._pass(there, writer, is_concerned=is_concerned),
                )
            finally:
                back.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._concerned.discard(writer)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_concerned: bool) -> None:
        with suppress(ConnectionError):
            while part := await reader.read(65536):
                if is_concerned and self.fault == "hang":
                    await self._healed.wait()
                writer.write(part)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def fault_proxy(url: str, only: bytes = b"") -> AsyncIterator[FaultProxy]:
    """Run a proxy before `url`."""
    proxy = FaultProxy(url, only)
    tasks: set[asyncio.Task[None]] = set()

    async def track(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await proxy.serve(reader, writer)
        tasks.discard(task)

    proxy.server = server = await asyncio.start_server(track, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
