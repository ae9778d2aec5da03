"""Sockets that systemd has opened for this process (socket activation, sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from router.errors import ConfigError

FIRST_FD = 3
_MOST_DIGITS = 9
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def inherited(env: MutableMapping[str, str], *, first_fd: int = FIRST_FD) -> list[tuple[str, socket.socket]]:
    """Return the sockets with their names, [] if there are none; remove the variables, which are not for children.

    Raises ConfigError for anything but a TCP socket that listens.
    """
    pid, count, names = (env.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal() or len(count) > _MOST_DIGITS:
        return []
    named = names.split(":")
    found = []
    for at in range(int(count)):
        name = named[at] if at < len(named) else ""
        found.append((name, _listening(first_fd + at, name)))
    return found


def _listening(fd: int, name: str) -> socket.socket:
    where = f"LISTEN_FDS: descriptor {fd} ({name or 'without a name'})"
    try:
        found = socket.socket(fileno=fd)
        is_right = (
            found.family in (socket.AF_INET, socket.AF_INET6)
            and found.type == socket.SOCK_STREAM
            and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        )
    except OSError as error:
        raise ConfigError(f"{where}: found {error.strerror}; allowed: a TCP socket that listens") from None
    if not is_right:
        found.detach()
        raise ConfigError(f"{where}: found another socket; allowed: a TCP socket that listens (ListenStream=port)")
    found.set_inheritable(False)
    found.setblocking(False)
    return found
