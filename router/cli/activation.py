"""Socket activation: the sockets of a systemd socket unit, in place of the configured addresses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import MutableMapping, Sequence

from router.app import Sockets
from router.http.server.inherited import inherited

ADMIN = "admin"
"""`FileDescriptorName=` of the sockets for the admin address; all others are for clients."""


def inherited_sockets(env: MutableMapping[str, str]) -> Sockets:
    """Return the sockets that systemd has passed. Raises ConfigError for one that cannot be used."""
    found = inherited(env)
    return Sockets(
        tuple(sock for name, sock in found if name != ADMIN),
        tuple(sock for name, sock in found if name == ADMIN),
    )


def address_of(sockets: Sequence[socket.socket]) -> str:
    """Return the address to configure for these sockets: one beyond loopback, if any, as it decides what clients may.

    With several sockets the others are reachable under addresses of their own.
    """
    names = sorted((sock.getsockname()[:2] for sock in sockets), key=lambda name: _is_loopback(name[0]))
    host, port = names[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
