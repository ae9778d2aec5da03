"""Connections of a listener with TLS, from when they are accepted until their handshake is over.

They are counted, and make room, like any other connection; from their first byte to the end of the handshake they have
the time of a head. asyncio's own server would not tell of them before that end. The first bytes are looked at without
being read, so that a client that speaks HTTP to this port is told so, in the words of net/http.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress

from router.http.server.clients import Client
from router.http.server.connection import DISCARDING, LINGER_S
from router.http.server.cycle import Cycle
from router.http.server.protocol import HttpProtocol, OnRefused
from router.http.server.shared import Shared

BACKLOG = 2048
MOST_ACCEPTED = 64
"""Connections that are accepted before others of the loop have their turn."""

PAUSE_S = 0.5
"""After an accept that failed for want of files or memory."""

_FULL = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_HANDSHAKE, _LOOK_BYTES = 0x16, 8
NOT_TLS = b"Client sent an HTTP request to an HTTPS server."


class Greeting:
    """A connection whose handshake is not over."""

    def __init__(self, server: SecuredServer, sock: socket.socket, address: str) -> None:
        self._server, self._sock, self._address = server, sock, address
        self._loop, self._shared = server.loop, server.shared
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._since_s = self._loop.time()
        self.deadline = self._since_s + self._shared.limits.header_s
        self.peer: Client = self._shared.client_at(address)
        self.queue: list[Cycle] = []

    def begin(self) -> None:
        """Wait for the first bytes. One that is too many is refused after its handshake, or closed at once."""
        if (why := self._shared.admit(self, self._since_s)) is not None:
            self.deadline = self._since_s + LINGER_S
            if self._shared.is_overfull:
                self._server.on_refused(503, why, self._address)
                self.abort()
                return
        self._shared.deadlines.add(self)
        self._loop.add_reader(self._sock, self._look)

    def end(self) -> None:
        """Leave the place to the connection that follows, or to nobody."""
        if not self._is_over:
            self._is_over = True
            self._shared.leave(self)
            self._shared.deadlines.discard(self)

    def _look(self) -> None:
        """Look at the first bytes."""
        try:
            seen = self._sock.recv(_LOOK_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            seen = b""
        if seen[:1].isupper() or seen[:1] == bytes((_HANDSHAKE,)):
            self._loop.remove_reader(self._sock)
            self._task = self._loop.create_task(self._go_on(is_tls=seen[0] == _HANDSHAKE))
            return
        if seen:
            self._refuse("no TLS")
        self.abort()

    async def _go_on(self, *, is_tls: bool) -> None:
        server, left_s = self._server, self._shared.limits.header_s
        try:
            if is_tls:
                await self._loop.connect_accepted_socket(
                    lambda: server.follow(self), self._sock, ssl=server.tls, ssl_handshake_timeout=left_s
                )
            else:
                await self._loop.connect_accepted_socket(lambda: NotTls(server, self), self._sock)
        except OSError as error:
            self._refuse(f"the TLS handshake failed: {getattr(error, 'reason', None) or error.strerror or error}")
        finally:
            self.end()

    def _refuse(self, text: str) -> None:
        self._server.on_refused(400, text.encode("latin-1", "replace"), self._address)

    # --- for its listener --------------------------------------------------------------------------------------

    @property
    def transport(self) -> Greeting:
        """What is under it, as far as its listener asks."""
        return self

    @property
    def idle_since_s(self) -> float:
        return self._since_s

    @property
    def may_ask(self) -> bool:
        return not self._is_over

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._is_over

    def abort(self) -> None:
        """Close it, in whichever state it is."""
        self.end()
        if self._task is not None:
            self._task.cancel()
        else:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    expire = shutdown = abort

    def interrupt(self) -> None:
        """Nothing is under way."""


class SecuredServer:
    """Accepts connections on `sockets`, which listen; `make` returns the protocol of one after its handshake."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        shared: Shared,
        tls: ssl.SSLContext,
        make: Callable[[], HttpProtocol],
        on_refused: OnRefused,
    ) -> None:
        self.sockets, self.shared, self.tls, self.on_refused = tuple(sockets), shared, tls, on_refused
        self.loop = asyncio.get_running_loop()
        self._make = make
        self._is_closed = False
        for sock in self.sockets:
            sock.setblocking(False)
            self.loop.add_reader(sock, self._accept, sock)

    def follow(self, greeting: Greeting) -> HttpProtocol:
        """Return the protocol that takes the place of `greeting`."""
        protocol = self._make()
        protocol.before = greeting.end
        return protocol

    def close(self) -> None:
        """Accept no more, and close the sockets."""
        self._is_closed = True
        for sock in self.sockets:
            self.loop.remove_reader(sock)
            sock.close()

    async def wait_closed(self) -> None:
        """Return at once: nothing is left after `close`."""

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(MOST_ACCEPTED):
            try:
                sock, address = listening.accept()
            except OSError as error:
                if error.errno in _FULL:
                    self.loop.remove_reader(listening)
                    self.loop.call_later(PAUSE_S, self._accept_again, listening)
                return
            sock.setblocking(False)
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Greeting(self, sock, str(address[0])).begin()

    def _accept_again(self, listening: socket.socket) -> None:
        if not self._is_closed:
            self.loop.add_reader(listening, self._accept, listening)


class NotTls(HttpProtocol):
    """A client that speaks HTTP without TLS: it is told so, and that is all."""

    def __init__(self, server: SecuredServer, greeting: Greeting) -> None:
        super().__init__(server.shared, server.loop, server.on_refused)
        self.before = greeting.end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.reading is not DISCARDING:  # else it is one too many, and has been told that
            self._on_refused(400, NOT_TLS, self.client)
            self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n%b\n" % NOT_TLS)
            self._linger()


async def listening_on(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of `host`. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
