"""How the system notices that the machine at the other end of a connection is gone: one that has lost its power or its
network sends nothing that would say so, and neither an unused connection nor a long answer is expected to say anything.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterable
from contextlib import suppress

SocketOption = tuple[int, int, int]
"""Level, name and value, as `setsockopt` takes them."""

PATIENT: tuple[SocketOption, ...] = tuple(
    (socket.IPPROTO_TCP, getattr(socket, name), 0) for name in ("TCP_USER_TIMEOUT",) if hasattr(socket, name)
)
"""Options for the time of an upload: to Linux one that does not read acknowledges nothing, but its disk may be slow."""

_MOST_S = 32767
"""The longest time that Linux takes for keep-alive."""


def link_options(silent_s: float) -> tuple[SocketOption, ...]:
    """Return options by which a connection breaks off if its other end acknowledges nothing for `silent_s` seconds.

    An unused one is asked for a sign of life from half of that time on. Where the system lacks an option, its own times
    apply, which are hours for an unused connection and a quarter of an hour for what was sent.
    """
    silent_s = min(silent_s, _MOST_S)
    idle_s = max(1, math.ceil(silent_s / 2))
    every_s = max(1, math.ceil(silent_s / 8))
    names = {
        "TCP_USER_TIMEOUT": math.ceil(silent_s * 1000),
        "TCP_KEEPIDLE": idle_s,
        "TCP_KEEPALIVE": idle_s,  # macOS
        "TCP_KEEPINTVL": every_s,
        "TCP_KEEPCNT": max(1, math.ceil((silent_s - idle_s) / every_s)),
    }
    found = [
        (socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in names.items() if hasattr(socket, name)
    ]
    return ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *found)


def set_options(transport: asyncio.BaseTransport, options: Iterable[SocketOption]) -> None:
    """Set options of a connection; one that is closed has none."""
    sock = transport.get_extra_info("socket")
    with suppress(OSError):
        for option in options if sock is not None else ():
            sock.setsockopt(*option)
