"""Host, Origin and path rules: tables, and properties over hostile input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.origins import HostRule, OriginRule
from router.api.paths import NotFound, Redirect, WrongMethod, find
from router.api.settings import EdgeSettings
from router.core.ollama.routes import EXACT, ROUTES, Match, Route
from router.http.client.response import UpstreamResponse
from tests.fakes import FakeDispatcher, client, running_edge
from tests.http.scripted_relay import ScriptedRelay

LOOPBACK = HostRule(("gpu.corp.example",), is_loopback=True)
OPEN = HostRule(("gpu.corp.example",), is_loopback=False)
ORIGINS = OriginRule(("http://team.example", "https://*.corp.example"))

ALLOWED_HOSTS = ["localhost", "LOCALHOST:11434", "127.0.0.1:1", "[::1]:80", "10.0.0.7", "192.168.1.5:99", "a.localhost"]
ALLOWED_HOSTS += ["x.local", "router.internal:80", "0.0.0.0:1", "gpu.corp.example", "GPU.corp.example:443", ""]
DENIED_HOSTS = [
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "local",
    "8.8.8.8",
]
DENIED_HOSTS += ["[2001:db8::1]:1".replace("2001:db8", "2a00"), "internal", "xlocal", "127.0.0.1@evil.example"]


@pytest.mark.parametrize("host", ALLOWED_HOSTS)
def test_local_names_and_addresses_are_allowed_e2(host: str) -> None:
    """On every bind address."""
    assert LOOPBACK.allows(host.encode())
    assert OPEN.allows(host.encode())


@pytest.mark.parametrize("host", DENIED_HOSTS)
def test_foreign_names_are_denied_e2(host: str) -> None:
    """On loopback as by Ollama; on other binds addresses and names without a dot are allowed."""
    assert not LOOPBACK.allows(host.encode())
    is_harmless = host in ("8.8.8.8", "local", "internal", "xlocal") or host.startswith("[")
    assert OPEN.allows(host.encode()) is is_harmless


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
    """Allowed ones get CORS headers (204 for any preflight), all others an empty 403, even for simple requests."""
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, ())))
    settings = EdgeSettings(origins=("http://team.example", "https://*.corp.example"))
    async with running_edge(dispatcher, settings) as running, client(running.port) as raw:
        target = "/nope" if method == "OPTIONS" else "/api/version" if method == "GET" else "/api/copy"
        headers = [("Origin", origin), ("Content-Type", "text/plain")]
        reply = await raw.ask(method, target, '{"source":"a","destination":"b"}' if method == "POST" else None, headers)
        if origin in DENIED_ORIGINS:
            assert (reply.status, reply.body) == (403, b"")
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
    """`Host: evil.example` gets an empty 403 on every bind address and route."""
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, ())))
    async with running_edge(dispatcher, settings) as running, client(running.port) as raw:
        for method, target in [("GET", "/"), ("GET", "/api/tags"), ("POST", "/api/chat"), ("GET", "/readyz")]:
            reply = await raw.ask(method, target, host="evil.example")
            assert (reply.status, reply.body) == (403, b"")
        assert (await raw.ask("OPTIONS", "/api/chat", host="a.localhost")).status == 204
        assert not dispatcher.relay.requests  # type: ignore[attr-defined]


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
