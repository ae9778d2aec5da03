"""Origin and path rules: tables, and properties over hostile input; a refused host or origin says what allows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.origins import OriginRule
from router.api.paths import NotFound, Redirect, WrongMethod, find
from router.api.refusals import MAX_REPORTS, how_to_allow_origin
from router.api.settings import EdgeSettings
from router.core.ollama.routes import EXACT, ROUTES, Match, Route
from router.http.client.response import UpstreamResponse
from tests.fakes import FakeDispatcher, client, running_edge
from tests.http.scripted_relay import ScriptedRelay

ORIGINS = OriginRule(("http://team.example", "https://*.corp.example"))

ALLOWED_ORIGINS = [
    "http://localhost", "https://localhost", "http://localhost:3000", "https://127.0.0.1:8443", "http://0.0.0.0:1",
    "app://x", "file://y", "tauri://localhost", "vscode-webview://z", "vscode-file://v", "http://team.example",
    "https://a.corp.example",
]  # fmt: skip
DENIED_ORIGINS = [
    "http://evil.example", "http://localhost.evil.example", "null", "chrome-extension://abc", "moz-extension://abc",
    "safari-web-extension://abc", "http://team.example.evil", "https://corp.example", "ftp://localhost", "localhost",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", ALLOWED_ORIGINS + DENIED_ORIGINS)
async def test_origins_are_answered_like_ollamas_e11_f7(origin: str, method: str) -> None:
    """Allowed ones get CORS headers (204 for any preflight), all others a 403, even for simple requests."""
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, ())))
    settings = EdgeSettings(origins=("http://team.example", "https://*.corp.example"))
    async with running_edge(dispatcher, settings) as running, client(running.port) as raw:
        target = "/nope" if method == "OPTIONS" else "/api/version" if method == "GET" else "/api/copy"
        headers = [("Origin", origin), ("Content-Type", "text/plain")]
        reply = await raw.ask(method, target, '{"source":"a","destination":"b"}' if method == "POST" else None, headers)
        if origin in DENIED_ORIGINS:
            assert (reply.status, "access-control-allow-origin" in reply.headers) == (403, False)
            assert f'origins: ["{origin}"]' in reply.json()["error"]
            assert not dispatcher.relay.requests  # type: ignore[attr-defined]
            return
        assert reply.status == (204 if method == "OPTIONS" else 200)
        assert reply.headers["access-control-allow-origin"] == origin
        if method == "OPTIONS":
            assert reply.headers["access-control-max-age"] == "43200"
            assert reply.headers["access-control-allow-methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
            assert "X-Stainless-Timeout" in reply.headers["access-control-allow-headers"]
        else:
            assert "X-Router-Model" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers


def test_the_own_origin_needs_no_cors_headers_e11() -> None:
    """An Origin equal to the Host is allowed, whatever the name."""
    assert ORIGINS.headers(b"http://router.internal:80", b"router.internal:80") == ()


def test_a_star_allows_all_origins_and_is_sent_as_a_star_e11() -> None:
    """The header is never the origin itself then, which would allow credentials."""
    headers = OriginRule(("*",)).headers(b"http://any.example", b"localhost")
    assert headers is not None
    assert headers[0] == (b"access-control-allow-origin", b"*")


@pytest.mark.parametrize("settings", [EdgeSettings(), EdgeSettings(is_loopback=False)])
async def test_a_rebound_name_is_denied_e2(settings: EdgeSettings) -> None:
    """`Host: evil.example` gets a 403 on every bind address and route, which says what would allow it."""
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, ())))
    async with running_edge(dispatcher, settings) as running, client(running.port) as raw:
        for method, target in [("GET", "/"), ("GET", "/api/tags"), ("POST", "/api/chat"), ("GET", "/readyz")]:
            reply = await raw.ask(method, target, host="evil.example")
            assert reply.status == 403
            assert 'hosts: ["evil.example"]' in reply.json()["error"]
        assert (await raw.ask("OPTIONS", "/api/chat", host="a.localhost")).status == 204
        assert not dispatcher.relay.requests  # type: ignore[attr-defined]


async def test_an_empty_origin_is_none_as_for_ollama_r6() -> None:
    """Neither a 403 nor CORS headers."""
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, ())))
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask("GET", "/api/version", headers=[("Origin", "")])
        assert (reply.status, "access-control-allow-origin" in reply.headers) == (200, False)


def test_an_origin_is_compared_without_its_case_e11() -> None:
    """Browsers send lower case; the header repeats what was sent."""
    headers = ORIGINS.headers(b"HTTP://Team.example", b"localhost")
    assert headers is not None
    assert headers[0] == (b"access-control-allow-origin", b"HTTP://Team.example")


@pytest.mark.parametrize(
    ("headers", "host", "told"),
    [
        ((), "gpu.corp.example:80", 'hosts: ["gpu.corp.example"]'),
        (((b"Origin", b"https://chat.example"),), "localhost", 'origins: ["https://chat.example"]'),
    ],
)
@pytest.mark.parametrize("target", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_a_refusal_names_the_key_that_allows_it_in_body_and_log(headers, host, told, target) -> None:
    """In the dialect of the path; the same refusal is logged once."""
    refusals = Reported()
    async with refusals.edge() as port, client(port) as raw:
        for _ in range(3):
            found = [(name.decode(), value.decode()) for name, value in headers]
            reply = await raw.ask("POST", target, "{}", found, host=host)
            error = reply.json()["error"]
            assert (reply.status, told in (error if target == "/api/chat" else error["message"])) == (403, True)
    assert len(refusals.lines) == 1
    assert told in refusals.lines[0]


async def test_the_log_of_refusals_is_bounded() -> None:
    """A client can make up any number of names."""
    refusals = Reported()
    async with refusals.edge() as port, client(port) as raw:
        for number in range(MAX_REPORTS + 10):
            assert (await raw.ask("GET", "/", host=f"x{number}.example")).status == 403
    assert len(refusals.lines) == MAX_REPORTS


@pytest.mark.parametrize("origin", [b'"', b"\xff", b"a\\b"])
async def test_what_is_no_origin_is_not_suggested(origin: bytes) -> None:
    """The text would not be one for a configuration."""
    assert "it is not an origin" in how_to_allow_origin(origin)


class Reported:
    """The warnings of an edge."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @asynccontextmanager
    async def edge(self) -> AsyncIterator[int]:
        """Run an edge that reports here, and return its port."""
        dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, ())))
        async with running_edge(dispatcher, report=self.lines.append) as running:
            yield running.port


segments = st.sampled_from(
    ["api", "delete", "chat", "tags", "v1", "models", "x", "..", ".", "", "%2e", "%2f", "API", "delete;x", "delete%00",
     "%61pi", "de%6cete", "blobs", "sha256:00", "%252f", "delete%20", "\\", "%5c", "delete?", "é"]
)  # fmt: skip


@given(st.lists(segments, min_size=1, max_size=5), st.sampled_from(["GET", "POST", "DELETE", "HEAD", "PUT"]))
def test_an_odd_path_is_exactly_one_route_or_none_e3_e4(parts: list[str], method: str) -> None:
    """The route is the table's for the path decoded once; a redirect leads to a clean path only."""
    from urllib.parse import unquote

    target = "/" + "/".join(parts)
    found = find(method, target.encode("latin-1").partition(b"?")[0])
    path = unquote(target.partition("?")[0])
    if isinstance(found, Route):
        assert path in EXACT
        assert EXACT[path][method] is found
    elif isinstance(found, Match):
        assert found.route in ROUTES
        assert path.startswith(found.route.pattern.split(":")[0])
        assert "/" not in found.argument
    elif isinstance(found, Redirect):
        assert not {"", ".", ".."} & set(found.location.decode().strip("/").split("/")) or found.location == b"/"
    else:
        assert isinstance(found, (NotFound, WrongMethod))


def test_every_route_of_ollama_is_classified_g2() -> None:
    """Each has a right, and is found by its pattern."""
    assert len(ROUTES) == 34
    assert all(route.right in ("infer", "read", "manage", "account") for route in ROUTES)
    for route in ROUTES:
        target = route.pattern.replace(":digest", "x").replace(":model", "x").replace(":key", "x").encode()
        found = find(route.method, target)
        assert (found.route if isinstance(found, Match) else found) is route
