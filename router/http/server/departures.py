"""Clients that have left although nothing says so: while nothing is read from them, or after they closed one half.

A connection that is not read reports neither an end nor a reset. And the end of what a client sends has two meanings:
it may be gone, or it may have nothing more to send and wait for its answer (`shutdown(SHUT_WR)`, `nc -N`). Only what
they do with something that is sent to them tells them apart: a client that is gone answers with a reset. So it is sent
something that no HTTP client minds: a 100 in front of an answer, a zero in front of a chunk's length.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from router.http.deadlines import Deadlines
from router.http.server.cycle import OPEN, STARTED, Cycle

PEEK_S = 0.25
"""Interval between two looks at a connection that is not read."""

QUICK_PROBES, PROBES = 4, 10
"""Probes at that interval, and all of them: further ones come at growing intervals."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# States of TCP on Linux; elsewhere a client that is gone is noticed by the second write to it.
_CLOSED, _CLOSE_WAIT = 7, 8


class Watched(Protocol):
    """A connection under watch."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    queue: list[Cycle]
    is_half_closed: bool


class Departure:
    """The watch over one connection, from time to time between `begin` and `end`."""

    __slots__ = ("_connection", "_members", "_next_probe_s", "_probes", "deadline")

    def __init__(self, members: Deadlines) -> None:
        self._connection: Watched | None = None  # only meanwhile: the two would refer to each other
        self._members = members
        self._probes, self._next_probe_s = 0, 0.0
        self.deadline = 0.0

    def begin(self, connection: Watched) -> None:
        """Look from time to time whether the client is still there, because reading will not tell."""
        self._connection = connection
        self._members.add(self)

    def end(self) -> None:
        self._connection = None
        self._members.discard(self)

    def expire(self) -> None:
        """Look whether the client is still there, and abort the connection if not."""
        connection = self._connection
        if connection is not None:
            self.deadline = connection.loop.time() + PEEK_S
            if self.is_gone():
                connection.transport.abort()

    def is_gone(self) -> bool:
        """Return True if the client has left; one that has sent all that it will is probed."""
        connection = self._connection
        if connection is None:
            return False
        state = state_of(connection.transport)
        if state == _CLOSED:
            return True
        if not (connection.is_half_closed or state == _CLOSE_WAIT) or not connection.queue:
            return False
        return self._is_gone_after_probe(connection.transport, connection.queue[0], connection.loop.time())

    def _is_gone_after_probe(self, transport: asyncio.Transport, cycle: Cycle, now_s: float) -> bool:
        piece = probe_of(cycle)
        if piece is None:  # no way to find out: it counts as gone, as for Ollama, unless its answer has begun
            self._probes += 1
            return cycle.phase is OPEN and self._probes > QUICK_PROBES // 2
        if self._probes >= PROBES or now_s < self._next_probe_s or transport.get_write_buffer_size():
            return False
        self._probes += 1
        self._next_probe_s = now_s + PEEK_S * 4 ** max(0, self._probes - QUICK_PROBES)
        transport.write(piece)
        return state_of(transport) == _CLOSED  # as soon as this on the same machine


def state_of(transport: asyncio.Transport) -> int | None:
    """Return the state of the TCP connection, None where the system does not tell."""
    try:
        return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except (AttributeError, OSError):
        return None


def probe_of(cycle: Cycle) -> bytes | None:
    """Return bytes that change nothing for a client that reads, None if there are none at this point of the answer."""
    if cycle.phase is OPEN:
        return None if cycle.head.http_10 else _CONTINUE
    return b"0" if cycle.phase is STARTED and cycle.is_chunked and not cycle.head_bytes else None
