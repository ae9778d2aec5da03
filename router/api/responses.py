"""The form of answers: errors in each dialect, and which headers are passed on. Pure.

Shapes are those of docs/ollama.md, "Error texts", byte for byte where Ollama has a text of its own.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.core.ollama.routes import Dialect
from router.errors import (
    BadRequest,
    Busy,
    LimitReached,
    Misdirected,
    NeverFits,
    NoVariantFits,
    RouterError,
    UnknownFront,
    UpstreamAway,
    UpstreamError,
)
from router.http.client.parser import ConnectionGone
from router.http.headers import Header

JSON = (b"content-type", b"application/json")
JSON_UTF8 = (b"content-type", b"application/json; charset=utf-8")
PLAIN = (b"content-type", b"text/plain")
UNAUTHORIZED, FORBIDDEN = 401, 403
NO_RETRY = (b"x-should-retry", b"false")

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade date".split()
)
_OF_AN_ORIGIN = frozenset(b"set-cookie set-cookie2 alt-svc strict-transport-security clear-site-data".split())
"""Headers by which a client remembers something of the server that it has called, which is the router."""

_NOT_PASSED = _HOP_BY_HOP | _OF_AN_ORIGIN | {b"x-request-id"}
_OUR_STARTS = (b"x-router-", b"access-control-", b"x-ratelimit-")
"""Headers that are the router's to set: what an upstream says there is not about this router, or for another origin."""

_PLAIN_CONNECTIONS = (b"keep-alive", b"close", b"Keep-Alive", b"Close")
UPSTREAM_HEADERS = frozenset(
    b"content-type accept user-agent traceparent tracestate anthropic-version anthropic-beta openai-beta".split()
)
"""The only request headers sent to Ollama, which forwards all of them to ollama.com for cloud models (E6)."""

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
CHALLENGE = (b"www-authenticate", b'Bearer realm="ollama-router"')
MOST_RETRY_S = 60.0
"""SDKs wait for a Retry-After of at most a minute; they take a longer one for none, and try again at once."""

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_HANDLERS_OWN = ("invalid model name", "invalid input type")
"""Refusals of Ollama's handlers, which its `/v1` routes send like any other error, unlike those of the routes' own."""
_encode = msgspec.json.encode


def error_value(message: str, status: int, dialect: Dialect, *, is_final: bool = False) -> dict[str, Any]:
    """Return the JSON value of an error: a string on `/api/*`, OpenAI's or Anthropic's envelope elsewhere.

    `is_final`: to try again is useless, so that its type is not that of an overloaded server.
    """
    if dialect == "ollama":
        return {"error": message}
    if dialect == "openai":
        kind = _OPENAI_TYPES.get(status, "api_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": _OPENAI_CODES.get(status)}}
    kind = "api_error" if is_final else _ANTHROPIC_TYPES.get(status, "api_error")
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}


def render_error(error: RouterError, dialect: Dialect) -> tuple[int, list[Header], bytes]:
    """Return status, headers and body of an error answer."""
    if isinstance(error, Misdirected):  # for a front, which reads one form only
        return error.status, [JSON], error.body
    is_final, status = isinstance(error, NeverFits), status_of(error, dialect)
    body = _encode(error_value(error.message, status, dialect, is_final=is_final))
    if dialect == "ollama" or (isinstance(error, BadRequest) and error.message not in _HANDLERS_OWN):
        headers = [JSON_UTF8]
    else:
        headers, body = [JSON], body + b"\n"
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if isinstance(error, LimitReached):
        headers += error.left
    if is_final or is_started(error) or _is_far(error):
        headers.append(NO_RETRY)
    if status == UNAUTHORIZED:
        headers.append(CHALLENGE)
    return status, headers, body


def own_headers(error: RouterError, attempts: int = 0) -> list[Header]:
    """Return the router's own headers of an error: the place in the queue, and attempts if there were several."""
    place = error.position if isinstance(error, (Busy, LimitReached)) else None
    found = [(b"x-router-position", b"%d" % place)] if place is not None else []
    return [*found, (b"x-router-attempts", b"%d" % attempts)] if attempts > 1 else found


def status_of(error: RouterError, dialect: Dialect) -> int:
    """Return the status of an error's answer: on `/api/*` never 401, which the CLI takes for one of Ollama's cloud.

    Only something that no client sends is a 401 there, too.
    """
    is_clients = error.status == UNAUTHORIZED and not isinstance(error, UnknownFront)
    return FORBIDDEN if is_clients and dialect == "ollama" else error.status


def _is_far(error: RouterError) -> bool:
    return isinstance(error, LimitReached) and (error.retry_after_s or 0.0) > MOST_RETRY_S


def is_started(error: RouterError) -> bool:
    """Return True if a generation may have begun before `error`: a retry would double the work (C4)."""
    if isinstance(error, (Busy, NoVariantFits, ConnectionGone, UpstreamAway)):
        return False
    if isinstance(error, UpstreamError):
        return not error.message.startswith(("cannot connect", "cannot reach", "no connection"))
    return error.status >= 500


def response_headers(upstream: Sequence[Header], by_name: Mapping[bytes, bytes]) -> list[Header]:
    """Return the upstream's headers for the client: no hop-by-hop headers, none that `Connection` names (E5).

    Cookies and the like are not passed on, nor are headers that are the router's to set.

    `by_name` is `upstream` as a dict.
    """
    kept = [pair for pair in upstream if pair[0] not in _NOT_PASSED and not pair[0].startswith(_OUR_STARTS)]
    return kept if by_name.get(b"connection", b"close") in _PLAIN_CONNECTIONS else _unnamed(kept, upstream)


def request_headers(client: Sequence[Header], by_name: Mapping[bytes, bytes]) -> list[Header]:
    """Return the client's headers for the upstream (E6). `by_name` is `client` as a dict."""
    kept = [header for header in client if header[0] in UPSTREAM_HEADERS]
    return kept if by_name.get(b"connection", b"close") in _PLAIN_CONNECTIONS else _unnamed(kept, client)


def _unnamed(kept: list[Header], sent: Sequence[Header]) -> list[Header]:
    """Return `kept` without the headers that a Connection header of `sent` names."""
    tokens = b",".join(value for name, value in sent if name == b"connection").split(b",")
    named = {token.strip().lower() for token in tokens}
    return [header for header in kept if header[0] not in named]
