"""From head and body to a `Call`: the request, the client's own demands, and whether they are allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from router.api.beside import in_turn
from router.api.exchange import Exchange
from router.api.responses import request_headers
from router.api.settings import EdgeSettings
from router.config import NothingFits
from router.core.go.quoting import brief
from router.core.ollama.names import MAX_NAME, may_be_name
from router.core.ollama.routes import Route
from router.core.payload.form import FAILED, read_form
from router.core.payload.read import InferenceRequest, read_request, read_wholly
from router.core.teams.rights import check_use, permit_of
from router.core.teams.team import NO_CAPS, Identity
from router.errors import BadRequest
from router.http.headers import header_lines
from router.routing.call import Call
from router.routing.nodes.front_call import FrontCall

RULES = ("refuse", "wait", "allow_partial", "passthrough")
FORM_BYTES = 25 << 20
"""The most of a form that Ollama reads into memory."""

OWN_HEADERS = frozenset((b"x-router-strict", b"x-router-nothing-fits"))
"""Headers by which a client influences the decision on its request."""


async def call_of(
    exchange: Exchange, settings: EdgeSettings, route: Route, now_s: float, client: str, front: FrontCall | None = None
) -> Call:
    """Return the call of a request from `client` that takes the general path. Raises a RouterError, or ClientGone."""
    is_form = route.kind == "v1_audio"
    body = await exchange.body(FORM_BYTES if is_form else None)
    by_name = exchange.headers
    lines = header_lines(request_headers(exchange.client_headers, by_name))
    names = settings, exchange.identity, route, lines, exchange.request_id, exchange.is_gone, by_name, now_s, client
    if not is_form:
        return await exchange.read(body, read_call, *names, read_wholly, front)
    if sum(name == b"content-type" for name, _ in exchange.client_headers) > 1:
        raise BadRequest(f"{FAILED}more than one Content-Type")
    kind = by_name.get(b"content-type", b"")
    return await in_turn(body, settings.inline_bytes, read_call, *names, lambda _, form: read_form(kind, form), front)


def read_call(
    body: bytes,
    settings: EdgeSettings,
    identity: Identity,
    route: Route,
    lines: bytes,
    request_id: str,
    is_gone: Callable[[], bool],
    by_name: Mapping[bytes, bytes],
    since_s: float,
    client: str,
    read: Callable[[str, bytes], InferenceRequest] = read_request,
    front: FrontCall | None = None,
) -> Call:
    """Return the call of a request of `identity` that arrived at loop time `since_s` from the address `client`.

    `front` is what a front says with it, which has applied all that a client may say and may not.

    `lines` are the headers that may go upstream, rendered; `by_name` maps all of its headers.

    Raises BadRequest with Ollama's own text, or Forbidden.
    """
    request = read(route.kind, body)
    if not ((request.model.isprintable() and len(request.model) <= MAX_NAME) or may_be_name(request.model)):
        raise BadRequest("invalid model name")
    if front is not None:
        return _call_of_front(front, route, request, body, lines, request_id, is_gone, since_s, client)
    permit = permit_of(identity.team)
    if not permit.is_open and request.has_model:
        check_use(identity, request.model)
    if settings.is_restricted or identity.team.caps is not NO_CAPS:
        caps = identity.team.caps
        request, body = settings.permissions.apply(request, body, caps, partial(read, route.kind))
    call = Call(
        route,
        request,
        body,
        lines,
        request_id,
        identity,
        is_gone=is_gone,
        since_s=since_s,
        may_use_remote=permit.may_use_cloud,
        client=client,
    )
    if not OWN_HEADERS.isdisjoint(by_name):
        nothing_fits = _nothing_fits(by_name.get(b"x-router-nothing-fits"))
        settings.permissions.check_rule(nothing_fits, identity.team.caps)
        call.demand(is_strict=_is_strict(by_name.get(b"x-router-strict", b"")), nothing_fits=nothing_fits)
    return call


def _call_of_front(
    front: FrontCall,
    route: Route,
    request: InferenceRequest,
    body: bytes,
    lines: bytes,
    request_id: str,
    is_gone: Callable[[], bool],
    since_s: float,
    client: str,
) -> Call:
    if request.has_model:
        front.check_model(request.model)
    return Call(
        route,
        request,
        body,
        lines,
        request_id,
        front.identity,
        is_gone=is_gone,
        since_s=since_s,
        client=front.told.client or client,
        front=front,
    )


def _is_strict(value: bytes) -> bool:
    text = brief(value.decode("latin-1").strip().lower())
    if text not in ("true", "1", "false", "0", ""):
        raise BadRequest(f"X-Router-Strict must be true or false, not {text!r}")
    return text in ("true", "1")


def _nothing_fits(value: bytes | None) -> NothingFits | None:
    if value is None:
        return None
    text = brief(value.decode("latin-1").strip().lower())
    if text not in RULES:
        raise BadRequest(f"X-Router-Nothing-Fits must be one of {', '.join(RULES)}, not {text!r}")
    return cast("NothingFits", text)
