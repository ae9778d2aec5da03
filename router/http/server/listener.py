"""A listening socket with our protocol: start, drain, stop. One process may have several (clients, admin)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from router.http.deadlines import Deadlines
from router.http.server.connection import WireLimits
from router.http.server.protocol import HttpProtocol, protocol_factory

LOOK_S = 0.02  # how often is looked for the end of what runs without a task

INTERRUPT_S = 1.0
"""After the grace period: so long may an interrupted answer take to say that it ends."""


class Listener:
    """Serves an ASGI `app` on `host`:`port` (0 = any free port), or on a socket that was bound before."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: WireLimits | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        limits = limits or WireLimits()
        shortest = min(limits.header_s, limits.keep_alive_s, limits.write_idle_s)
        self._host, self._port, self._sock = host, port, sock
        self._protocol, self._factory, self._state = protocol_factory(
            app, limits, Deadlines(max(0.01, min(0.5, shortest / 4)))
        )
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on. Only after `start`."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._state.connections)

    def tasks(self) -> list[asyncio.Task[None]]:
        """The requests under way, those included whose client has left and that are cleaning up."""
        connections: Any = self._state.connections
        running = [cycle.task for connection in connections for cycle in connection.queue if cycle.task is not None]
        return [*running, *self._state.tasks]

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"sock": self._sock} if self._sock else {"host": self._host, "port": self._port}
        self._server = await loop.create_server(self._factory, backlog=2048, **where)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take nothing new, let what is under way end within `grace_s`, then interrupt it.

        An interrupted stream still gets a well-formed end: its task is cancelled and has a second to say so.
        """
        if self._server is None:
            return
        self._protocol.is_draining = True
        self._server.close()
        for connection in tuple(self._state.connections):
            connection.shutdown()
        await self._wait(grace_s)
        for connection in tuple(self._state.connections):
            connection.interrupt()  # type: ignore[union-attr]
        for task in self.tasks():
            task.cancel()
        await self._wait(INTERRUPT_S)
        await self._flush()
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Listener:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _has_underway(self) -> bool:
        """True while a request is under way without a task."""
        connections: Any = self._state.connections
        return any(cycle.underway is not None for connection in connections for cycle in connection.queue)

    async def _wait(self, timeout_s: float) -> None:
        """Until nothing is under way any more."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while (left_s := until_s - loop.time()) > 0:
            tasks, has_underway = self.tasks(), self._has_underway()
            if tasks:
                await asyncio.wait(tasks, timeout=min(left_s, LOOK_S) if has_underway else left_s)
            elif has_underway:
                await asyncio.sleep(min(left_s, LOOK_S))
            else:
                return

    async def _flush(self) -> None:
        """Give written bytes a moment to leave, then close what is still open."""
        for _ in range(10):
            if not any(_is_pending(connection) for connection in self._state.connections):
                break
            await asyncio.sleep(0.02)
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


def _is_pending(connection: Any) -> bool:
    return isinstance(connection, HttpProtocol) and connection.transport.get_write_buffer_size() > 0
