"""Host and Origin rules like Ollama's, and CORS. Pure; the edge applies them first.

Sources: `allowedHostsMiddleware` and `AllowedOrigins` of Ollama, gin-contrib/cors 1.7.2. Unlike in Ollama the Host is
checked on every bind address: a browser must not reach the router under an attacker's name (DNS rebinding).
"""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import ip_address

from router.http.headers import Header

_LOCAL = ("localhost", "127.0.0.1", "0.0.0.0")
DEFAULT_ORIGINS = (
    *(f"{scheme}://{host}{port}" for host in _LOCAL for scheme in ("http", "https") for port in ("", ":*")),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
_ALLOWED_HEADERS = (
    b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    b"X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    b"X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    b"X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
EXPOSED = (
    b"X-Router-Model,X-Router-Requested-Model,X-Router-Reason,X-Router-Backend,X-Router-Queue-Ms,"
    b"X-Router-Attempts,X-Request-Id"
)
_PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-headers", _ALLOWED_HEADERS),
    (b"access-control-allow-methods", b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    (b"access-control-max-age", b"43200"),
    (b"vary", b"Origin"),
    (b"vary", b"Access-Control-Request-Method"),
    (b"vary", b"Access-Control-Request-Headers"),
)


class HostRule:
    """Decides which Host values are allowed: IP addresses, this machine's names, local and configured names.

    On a loopback bind only loopback, private and this machine's own addresses are allowed, as in Ollama. On other binds
    any address is (a rebinding attack needs a name), and so is a name without a dot (as containers use).
    """

    def __init__(self, hosts: tuple[str, ...], *, is_loopback: bool) -> None:
        own = socket.gethostname().lower()
        self._names = {"", "localhost", own, *(host.lower() for host in hosts)}
        self._is_loopback = is_loopback
        self.allows = lru_cache(maxsize=512)(self._allows)

    def _allows(self, value: bytes) -> bool:
        return self.is_address(value) or self.is_name(value)

    def is_address(self, value: bytes) -> bool:
        try:
            address = ip_address(_without_port(value))
        except ValueError:
            return False
        if not self._is_loopback:
            return True
        return address.is_loopback or address.is_private or address.is_unspecified or str(address) in _own_addresses()

    def is_name(self, value: bytes) -> bool:
        name = _without_port(value)
        if name in self._names or name.endswith((".localhost", ".local", ".internal")):
            return True
        return not self._is_loopback and "." not in name and ":" not in name


class OriginRule:
    """Decides which Origins are allowed, and which CORS headers an answer carries."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        patterns = [origin.strip().lower() for origin in (*origins, *DEFAULT_ORIGINS)]
        self._allows_all = "*" in patterns
        self._exact = {pattern for pattern in patterns if "*" not in pattern}
        self._wild = [pattern.split("*", 1) for pattern in patterns if "*" in pattern]

    def headers(self, origin: bytes, host: bytes, *, is_preflight: bool = False) -> tuple[Header, ...] | None:
        """Return () for the router's own origin, CORS headers for an allowed one, None (403) for all others."""
        if origin in (b"http://" + host, b"https://" + host):  # same origin; the Host is checked separately
            return ()
        if not self._is_allowed(origin.decode("latin-1")):
            return None
        # With `*` never the origin itself: a browser would allow credentials with it.
        allow = (b"access-control-allow-origin", b"*" if self._allows_all else origin)
        if is_preflight:
            return (allow, *_PREFLIGHT)
        return (allow, (b"vary", b"Origin"), (b"access-control-expose-headers", EXPOSED))

    def _is_allowed(self, origin: str) -> bool:
        if self._allows_all or origin in self._exact:
            return True
        return any(
            len(origin) >= len(head) + len(tail) and origin.startswith(head) and origin.endswith(tail)
            for head, tail in self._wild
        )


def _without_port(value: bytes) -> str:
    """Return the host of a Host header: `[::1]:80` → `::1`, `a.b:80` → `a.b`, a bare IPv6 address unchanged."""
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    head, colon, port = text.rpartition(":")
    return head if colon and port.isdigit() and ":" not in head else text


@lru_cache(maxsize=1)
def _own_addresses() -> frozenset[str]:
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return frozenset()
