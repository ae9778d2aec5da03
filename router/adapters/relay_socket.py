"""Writing to a socket at once, where the loop would put it off to the end of its turn (uvloop does).

What is written about a request (telemetry, books) then happens while the bytes are on their way.
"""

from __future__ import annotations

import asyncio
import os
import socket

NOT_PLAIN = -1


def plain_fd(transport: asyncio.Transport) -> int:
    """The descriptor behind a transport of plain TCP; NOT_PLAIN for TLS and for what is no socket."""
    found = transport.get_extra_info("socket")
    if found is None or transport.get_extra_info("ssl_object") is not None:
        return NOT_PLAIN
    return int(found.fileno()) if found.family in (socket.AF_INET, socket.AF_INET6) else NOT_PLAIN


def write_now(transport: asyncio.Transport, fd: int, data: bytes) -> None:
    """Write `data` at once as far as the socket takes it, the rest through `transport`; never before what waits there.

    Every error is left to `transport`, which tells its protocol.
    """
    if fd != NOT_PLAIN and not transport.is_closing() and not transport.get_write_buffer_size():
        try:
            sent = os.write(fd, data)
        except OSError:
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)
