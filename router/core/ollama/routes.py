"""Every route of Ollama that the router knows: one table for matching, authorising and building the upstream target.

Pure data. A path that is not in the table is never forwarded. Source: `GenerateRoutes` in Ollama's server/routes.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Right = Literal["infer", "read", "manage", "account"]
Dialect = Literal["ollama", "openai", "anthropic"]


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    `pattern` ends in ``/:name`` if the last path segment is an argument. `kind` names what the route does; for
    inference it is the kind that `payload.read_request` takes. `right` is the permission that a client needs; `dialect`
    is the format of its errors.
    """

    method: str
    pattern: str
    kind: str
    right: Right
    dialect: Dialect = "ollama"

    method_bytes: bytes = field(init=False, default=b"")
    target: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        """Encode method and target once, as they are sent upstream."""
        object.__setattr__(self, "method_bytes", self.method.encode())
        object.__setattr__(self, "target", self.pattern.encode())

    @property
    def is_inference(self) -> bool:
        """True for routes whose model the router chooses."""
        return self.right == "infer"


ROUTES: tuple[Route, ...] = (
    Route("HEAD", "/", "root", "read"),
    Route("GET", "/", "root", "read"),
    Route("HEAD", "/api/version", "version", "read"),
    Route("GET", "/api/version", "version", "read"),
    Route("GET", "/api/status", "status", "read"),
    Route("POST", "/api/generate", "generate", "infer"),
    Route("POST", "/api/chat", "chat", "infer"),
    Route("POST", "/api/embed", "embed", "infer"),
    Route("POST", "/api/embeddings", "embeddings", "infer"),
    Route("HEAD", "/api/tags", "tags", "read"),
    Route("GET", "/api/tags", "tags", "read"),
    Route("POST", "/api/show", "show", "read"),
    Route("GET", "/api/ps", "ps", "read"),
    Route("POST", "/api/pull", "pull", "manage"),
    Route("POST", "/api/push", "push", "manage"),
    Route("POST", "/api/create", "create", "manage"),
    Route("POST", "/api/copy", "copy", "manage"),
    Route("DELETE", "/api/delete", "delete", "manage"),
    Route("POST", "/api/blobs/:digest", "blob_put", "manage"),
    Route("HEAD", "/api/blobs/:digest", "blob_head", "manage"),
    Route("POST", "/api/me", "me", "account"),
    Route("POST", "/api/signout", "signout", "account"),
    Route("DELETE", "/api/user/keys/:key", "user_key", "account"),
    Route("POST", "/api/experimental/web_search", "web_search", "account"),
    Route("POST", "/api/experimental/web_fetch", "web_fetch", "account"),
    Route("GET", "/api/experimental/model-recommendations", "recommendations", "read"),
    Route("POST", "/v1/chat/completions", "v1_chat", "infer", "openai"),
    Route("POST", "/v1/completions", "v1_completions", "infer", "openai"),
    Route("POST", "/v1/embeddings", "v1_embeddings", "infer", "openai"),
    Route("POST", "/v1/responses", "v1_responses", "infer", "openai"),
    Route("POST", "/v1/messages", "v1_messages", "infer", "anthropic"),
    Route("GET", "/v1/models", "v1_models", "read", "openai"),
    Route("GET", "/v1/models/:model", "v1_model", "read", "openai"),
    Route("POST", "/v1/audio/transcriptions", "v1_audio", "infer", "openai"),
)


@dataclass(frozen=True, slots=True)
class Match:
    """A route and the argument of its path ("" where it has none)."""

    route: Route
    argument: str = ""


def _split(pattern: str) -> tuple[str, bool]:
    head, _, tail = pattern.rpartition("/")
    return (head + "/", True) if tail.startswith(":") else (pattern, False)


EXACT: dict[str, dict[str, Route]] = {}
PREFIXED: dict[str, dict[str, Route]] = {}
for _route in ROUTES:
    _path, _has_argument = _split(_route.pattern)
    (PREFIXED if _has_argument else EXACT).setdefault(_path, {})[_route.method] = _route

TARGETS: dict[tuple[str, bytes], Route] = {
    (route.method, path.encode()): route for path, methods in EXACT.items() for route in methods.values()
}
"""Fast path: (method, raw target without a query) → route. All other spellings go through `match`."""


def allowed_methods(path: str) -> tuple[dict[str, Route], str]:
    """Return the routes on a decoded, clean `path` by method, and the path's argument; ({}, "") if there are none."""
    if (exact := EXACT.get(path)) is not None:
        return exact, ""
    head, _, argument = path.rpartition("/")
    return (PREFIXED.get(head + "/", {}), argument) if argument else ({}, "")


def match(method: str, path: str) -> Match | tuple[str, ...]:
    """Return the route for `method` on a decoded, clean `path`, else the path's methods (() = unknown path)."""
    methods, argument = allowed_methods(path)
    if (route := methods.get(method)) is not None:
        return Match(route, argument)
    return tuple(methods)
