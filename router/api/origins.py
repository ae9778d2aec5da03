"""Origin rules like Ollama's, and CORS. Pure; the edge applies them first, with `router/http/server/hosts.py`.

Sources: `AllowedOrigins` of Ollama, gin-contrib/cors 1.7.2.
"""

from __future__ import annotations

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
    b"X-Router-Attempts,X-Router-Position,X-Request-Id"
)
_PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-headers", _ALLOWED_HEADERS),
    (b"access-control-allow-methods", b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    (b"access-control-max-age", b"43200"),
    (b"vary", b"Origin"),
    (b"vary", b"Access-Control-Request-Method"),
    (b"vary", b"Access-Control-Request-Headers"),
)


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
        if not self._is_allowed(origin.decode("latin-1").lower()):
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
