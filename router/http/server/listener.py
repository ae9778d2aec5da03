"""A listening socket: start, drain, stop. A process may have several (clients, admin)."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from router.http.deadlines import Deadlines
from router.http.server.limits import WireLimits
from router.http.server.protocol import HttpProtocol, OnRefused, say_nothing
from router.http.server.proxies import ProxiedProtocol, Proxies
from router.http.server.secured import BACKLOG, SecuredServer, listening_on
from router.http.server.shared import App, Shared

POLL_S = 0.02
"""Polling interval while waiting for requests that run without a task."""

HASTE_POLL_S = 0.1
"""Polling interval of `hasten` while waiting for tasks."""

LAST_REQUEST_S = 1.0
"""How long a connection that is kept alive may send one more request, whose answer says that it is the last one."""

INTERRUPT_S = 1.0
"""Time after the grace period in which interrupted answers may send their error."""

FLUSH_TRIES = 10
"""Number of polls in which written bytes may be sent before connections are closed."""


class Listener:
    """Serves `app` on `host`:`port` (0 = any free port), or on `sockets` that listen already; with `tls` over TLS.

    With `proxies` the connections of these begin with a header of the PROXY protocol. `on_refused` is called for what
    is no valid request, and for connections that are too many.
    """

    def __init__(
        self,
        app: App,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: WireLimits | None = None,
        sockets: Sequence[socket.socket] = (),
        tls: ssl.SSLContext | None = None,
        proxies: Proxies | None = None,
        on_refused: OnRefused = say_nothing,
    ) -> None:
        limits = limits or WireLimits()
        self._host, self._port, self._given, self._tls = host, port, sockets, tls
        self._proxies, self._on_refused = proxies, on_refused
        self._shared = Shared(app, limits, Deadlines.of(limits.header_s, limits.keep_alive_s, limits.write_idle_s))
        self._servers: list[asyncio.Server | SecuredServer] = []
        self._is_hasty = False

    @property
    def port(self) -> int:
        """The port in use. Valid after `start`."""
        return int(self._servers[0].sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL for clients. Valid after `start`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """The number of connected clients."""
        return len(self._shared.connections)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of requests under way, including those that clean up after a client that has left."""
        cycles = (cycle for connection in self._shared.connections for cycle in connection.queue)
        return [*(cycle.task for cycle in cycles if cycle.task is not None), *self._shared.tasks]

    def sockets(self) -> tuple[socket.socket, ...]:
        """Return duplicates of the listening sockets: no connection is lost when another listener takes over."""
        return tuple(socket.socket(fileno=os.dup(one.fileno())) for server in self._servers for one in server.sockets)

    async def start(self) -> None:
        """Listen. Raises OSError if the address cannot be bound."""
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            found = self._given or await listening_on(self._host, self._port)
            self._servers.append(SecuredServer(found, self._shared, self._tls, self._protocol, self._on_refused))
            return
        places: list[dict[str, Any]] = [{"sock": one} for one in self._given]
        for where in places or [{"host": self._host, "port": self._port}]:
            server = await loop.create_server(self._protocol, backlog=BACKLOG, **where)
            self._servers.append(server)

    def _protocol(self) -> HttpProtocol:
        loop = asyncio.get_running_loop()
        if self._proxies is not None:
            return ProxiedProtocol(self._shared, loop, self._on_refused, self._proxies)
        return HttpProtocol(self._shared, loop, self._on_refused)

    def hasten(self) -> None:
        """End the grace period of a stop that is under way."""
        self._is_hasty = True

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no new connections, let the requests under way end within `grace_s`, then interrupt them.

        One that a client sends just now on a connection that it keeps is still answered: closing would fail it.
        An interrupted stream still gets a well-formed end: its task is cancelled, and has `INTERRUPT_S` to send it.
        """
        if not self._servers:
            return
        # No new connections and no new requests first; then wait, interrupt, cancel, flush, in this order.
        self._shared.drain()
        for server in self._servers:
            server.close()
        until_s = asyncio.get_running_loop().time() + grace_s
        await self._take_last_requests(min(grace_s, LAST_REQUEST_S))
        for connection in tuple(self._shared.connections):
            connection.shutdown()
        await self._wait(until_s - asyncio.get_running_loop().time(), may_hasten=True)
        for connection in tuple(self._shared.connections):
            connection.interrupt()
        for task in self.tasks():
            task.cancel()
        await self._wait(INTERRUPT_S)  # the cancelled tasks send their errors meanwhile
        await self._flush()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    async def __aenter__(self) -> Listener:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _take_last_requests(self, timeout_s: float) -> None:
        """Wait until no client can send a further request, for at most `timeout_s`."""
        for connection in tuple(self._shared.connections):
            if not connection.may_ask:
                connection.shutdown()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while (left_s := until_s - loop.time()) > 0 and not self._is_hasty:
            if not any(connection.may_ask for connection in self._shared.connections):
                return
            await asyncio.sleep(min(left_s, POLL_S))

    def _has_taskless(self) -> bool:
        """Return True while a request runs without a task."""
        connections = self._shared.connections
        return any(cycle.taskless is not None for connection in connections for cycle in connection.queue)

    async def _wait(self, timeout_s: float, *, may_hasten: bool = False) -> None:
        """Wait until no request is under way, for at most `timeout_s`."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while (left_s := until_s - loop.time()) > 0 and not (may_hasten and self._is_hasty):
            tasks, has_taskless = self.tasks(), self._has_taskless()
            if tasks:
                poll_s = POLL_S if has_taskless else HASTE_POLL_S if may_hasten else left_s
                await asyncio.wait(tasks, timeout=min(left_s, poll_s))
            elif has_taskless:
                await asyncio.sleep(min(left_s, POLL_S))
            else:
                return

    async def _flush(self) -> None:
        """Let written bytes be sent for a moment, then close all connections."""
        connections = self._shared.connections
        for _ in range(FLUSH_TRIES):
            if not any(connection.transport.get_write_buffer_size() for connection in connections):
                break
            await asyncio.sleep(POLL_S)
        for connection in tuple(connections):
            connection.transport.abort()
        await asyncio.sleep(0)
