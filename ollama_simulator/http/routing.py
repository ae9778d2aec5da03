"""Gin's routing (decoded paths, redirects for odd slashes, 404, 405) and Ollama's rules for Origin and Host."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ollama_simulator.http.requests import Request


@dataclass(frozen=True, slots=True)
class Match:
    """The result of routing: a handler's name and the path parameter, or a response of gin itself."""

    handler: str = ""
    parameter: str = ""
    status: int = 200
    allow: str = ""
    location: str = ""


# In the order in which Ollama registers them: `Allow` lists methods in the order of their first registration.
ROUTES: Sequence[tuple[str, str, str]] = (
    ("HEAD", "/", "root"),
    ("GET", "/", "root"),
    ("HEAD", "/api/version", "version"),
    ("GET", "/api/version", "version"),
    ("GET", "/api/status", "status"),
    ("POST", "/api/pull", "pull"),
    ("POST", "/api/push", "push"),
    ("HEAD", "/api/tags", "tags"),
    ("GET", "/api/tags", "tags"),
    ("POST", "/api/show", "show"),
    ("DELETE", "/api/delete", "delete"),
    ("POST", "/api/me", "me"),
    ("POST", "/api/signout", "signout"),
    ("DELETE", "/api/user/keys/:", "signout"),
    ("POST", "/api/create", "create"),
    ("POST", "/api/blobs/:", "create_blob"),
    ("HEAD", "/api/blobs/:", "head_blob"),
    ("POST", "/api/copy", "copy"),
    ("POST", "/api/experimental/web_search", "web_search"),
    ("POST", "/api/experimental/web_fetch", "web_fetch"),
    ("GET", "/api/experimental/model-recommendations", "recommendations"),
    ("GET", "/api/ps", "ps"),
    ("POST", "/api/generate", "generate"),
    ("POST", "/api/chat", "chat"),
    ("POST", "/api/embed", "embed"),
    ("POST", "/api/embeddings", "embeddings"),
    ("POST", "/v1/chat/completions", "v1_chat"),
    ("POST", "/v1/completions", "v1_completions"),
    ("POST", "/v1/embeddings", "v1_embeddings"),
    ("GET", "/v1/models", "v1_models"),
    ("GET", "/v1/models/:", "v1_model"),
    ("POST", "/v1/responses", "v1_responses"),
    ("POST", "/v1/audio/transcriptions", "v1_transcriptions"),
    ("POST", "/v1/messages", "v1_messages"),
)
_METHODS = list(dict.fromkeys(method for method, _, _ in ROUTES))


def find(method: str, path: str, prefix: str = "") -> Match:
    """Return the route of a decoded path, or gin's own response: redirect, 404, 405 with Allow.

    `prefix` is the X-Forwarded-Prefix header, which gin puts in front of a redirect's target.
    """
    fitting = {route_method: (handler, rest) for route_method, rest, handler in _on(path)}
    if method in fitting:
        handler, parameter = fitting[method]
        return Match(handler, parameter)
    if not fitting and method != "CONNECT" and path != "/":
        location = _redirect(method, path)
        if location:
            return Match(status=301 if method == "GET" else 307, location=_prefixed(prefix, location))
    if fitting:
        return Match(status=405, allow=", ".join(name for name in _METHODS if name in fitting))
    return Match(status=404)


def _on(path: str) -> list[tuple[str, str, str]]:
    """Return (method, parameter, handler) of every route that this path matches."""
    found = []
    for method, pattern, handler in ROUTES:
        if pattern == path:
            found.append((method, "", handler))
        rest = path.removeprefix(pattern[:-1]) if pattern.endswith("/:") and path.startswith(pattern[:-1]) else ""
        if rest and "/" not in rest:
            found.append((method, rest, handler))
    return found


def _redirect(method: str, path: str) -> str:
    other = path[:-1] if path.endswith("/") else path + "/"
    if any(found == method for found, _, _ in _on(other)):
        return other
    return ""


def _prefixed(prefix: str, location: str) -> str:
    """Put a cleaned prefix in front, without the characters that gin takes out of it."""
    cleaned = posixpath.normpath(prefix)
    if cleaned == ".":
        return location
    safe = re.sub(r"/{2,}", "/", re.sub(r"[^a-zA-Z0-9/-]+", "", cleaned))
    return f"{safe}/{location}".replace("//", "/")


def clean(path: str) -> str:
    """Return the path cleaned as by net/http's ServeMux: no `//`, `/./`, `/../`; a trailing slash stays."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    tail = "/" if parts and path.endswith("/") else ""
    return "/" + "/".join(parts) + tail


DEFAULT_ORIGINS = (
    *tuple(
        pattern
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for pattern in (f"http://{host}", f"https://{host}", f"http://{host}:*", f"https://{host}:*")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)

ALLOWED_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)


def origin_rule(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a predicate for allowed Origins; each pattern may have one wildcard."""
    compiled = [re.compile(re.escape(pattern.lower()).replace(r"\*", ".*", 1)) for pattern in patterns]
    return lambda origin: any(pattern.fullmatch(origin) for pattern in compiled)


def is_same_origin(request: Request) -> bool:
    """Whether the Origin is this host itself; gin-contrib/cors ignores such requests."""
    origin = request.header("Origin")
    return origin in (f"http://{request.host}", f"https://{request.host}")


_LOCAL_SUFFIXES = ("localhost", "local", "internal")


_PRIVATE = [ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]


def host_of(authority: str) -> str:
    """Return the host by net.SplitHostPort, or the whole text if it has no port."""
    match = re.fullmatch(r"\[([^\[\]]*)\]:[^:\[\]]*|([^:\[\]]*):[^:\[\]]*", authority)
    return (match[1] if match[1] is not None else match[2]) if match else authority


def is_address(authority: str) -> bool:
    """Whether a Host names an IP address."""
    try:
        ipaddress.ip_address(host_of(authority))
    except ValueError:
        return False
    return True


def is_allowed_host(authority: str, hostname: str) -> bool:
    """Whether Ollama accepts this Host on a loopback listener (its protection against DNS rebinding)."""
    name = host_of(authority)
    if is_address(authority):
        address = ipaddress.ip_address(name)
        return address.is_loopback or address.is_unspecified or any(address in net for net in _PRIVATE)
    lowered = name.lower()
    known = lowered in ("", "localhost", hostname.lower())
    return known or any(lowered.endswith("." + suffix) for suffix in _LOCAL_SUFFIXES)
