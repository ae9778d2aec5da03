"""The Host header: its form, and which names are allowed. Pure.

Source: `allowedHostsMiddleware` of Ollama. Unlike in Ollama the name is checked on every bind address: a browser must
not reach the router under an attacker's name (DNS rebinding). So the endings that are allowed without configuration
are those that nobody can register in the public DNS.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

HOST_VALUE = re.compile(
    rb"(?:\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9\-._~%]+)?\](?::[0-9]*)?|[A-Za-z0-9\-._~%!$&'()*+,;=:]*)\Z"
)
"""Go's characters of a Host, and square brackets around an IPv6 address only (RFC 3986 §3.2.2)."""

LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".ts.net")
"""Ollama's three, home networks, services of Kubernetes (their long form ends in .local), and tailnets."""

MAX_SHOWN = 253
"""The longest host name of the DNS."""

MAX_VALUE = MAX_SHOWN + len("[]:65535.")

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.:-]*")


class HostRule:
    """Decides which Host values are allowed: IP addresses, this machine's names, local and configured names.

    `hosts` are names, or patterns: `*.` in front stands for all names below, `*` elsewhere for a part of one label, a
    bare `*` for any name. On a loopback bind only loopback, private and this machine's own addresses are allowed, as in
    Ollama. On other binds any address is (a rebinding attack needs a name), and so is a name without a dot (as
    containers use).
    """

    def __init__(self, hosts: tuple[str, ...], *, is_loopback: bool) -> None:
        own = socket.gethostname().lower()
        self._names = {"", "localhost", own, *(host.lower() for host in hosts if "*" not in host)}
        self._patterns = [_pattern(host.lower()) for host in hosts if "*" in host]
        self._is_loopback = is_loopback
        self._cached = lru_cache(maxsize=512)(self._allows)

    def allows(self, value: bytes) -> bool:
        """Return True for a Host that is allowed; a value longer than any name is not, and not remembered."""
        return len(value) <= MAX_VALUE and self._cached(value)

    def _allows(self, value: bytes) -> bool:
        return self.is_address(value) or self.is_name(value)

    def is_address(self, value: bytes) -> bool:
        """Return True for an IP address that is allowed."""
        try:
            address = ip_address(host_of(value))
        except ValueError:
            return False
        if not self._is_loopback:
            return True
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return address.is_loopback or address.is_private or address.is_unspecified or str(address) in _own_addresses()

    def is_name(self, value: bytes) -> bool:
        """Return True for a name, or a configured address, that is allowed."""
        name = host_of(value)
        if name in self._names or name.endswith(LOCAL_ENDINGS):
            return True
        if any(pattern.fullmatch(name) for pattern in self._patterns):
            return True
        return not self._is_loopback and not set(name) & set(".:[]")


def host_of(value: bytes) -> str:
    """Return the host of a Host header, in lower case, without port, brackets and the dot of a complete name.

    `[::1]:80` → `::1`, `A.b.:80` → `a.b`; a bare IPv6 address is returned unchanged. Whatever follows a single colon is
    the port, as for Go.
    """
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0] if HOST_VALUE.match(value) else text
    if text.count(":") == 1:
        text = text.partition(":")[0]
    return text[:-1] if text.endswith(".") and len(text) > 1 else text


def how_to_allow(value: bytes) -> str:
    """Return why a request with this Host is refused, and what to configure to allow it."""
    name = host_of(value)[:MAX_SHOWN]
    if not _NAME.fullmatch(name):
        return f"the Host {name!r} is not allowed: it is not a host name"
    return (
        f"the host name {name} is not allowed; to allow it, add it to the key hosts of the router's configuration: "
        f'hosts: ["{name}"] (or set OLLAMA_ROUTER_HOSTS=\'["{name}"]\')'
    )


def _pattern(host: str) -> re.Pattern[str]:
    if host == "*":
        return re.compile(".*")
    is_below = host.startswith("*.")
    labels = "[^.]*".join(re.escape(part) for part in host.removeprefix("*.").split("*"))
    return re.compile(rf"(?:[^.]+\.)+{labels}" if is_below else labels)


@lru_cache(maxsize=1)
def _own_addresses() -> frozenset[str]:
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return frozenset()
