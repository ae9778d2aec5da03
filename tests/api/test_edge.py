"""All routes through a real edge: rights, the request to the upstream, and the answer, with Ollama's own texts."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import zstandard

from router.api.settings import EdgeSettings
from router.core.ollama.routes import ROUTES
from router.errors import (
    Busy,
    LoadFailed,
    ModelNotFound,
    NeverFits,
    NoVariantFits,
    RouterError,
    UpstreamError,
    UpstreamTimeout,
)
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.http.server.asgi import Asgi
from router.http.server.listener import Listener
from router.routing.call import Call
from router.routing.directory import VirtualModel
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.raw_upstream import Visit, answer, chunk, raw_upstream
from tests.http.scripted_relay import ScriptedRelay

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}'
JSON = ((b"content-type", b"application/json; charset=utf-8"),)
OPEN_HOUSE = EdgeSettings(is_loopback=False)


def scripted(body: bytes = b'{"done":true}', status: int = 200) -> FakeDispatcher:
    return FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(status, JSON, body)))


def asked(dispatcher: FakeDispatcher) -> list[UpstreamRequest]:
    assert isinstance(dispatcher.relay, ScriptedRelay)
    return dispatcher.relay.requests


# Fixed answers


async def test_the_root_and_the_version_are_ollamas_own() -> None:
    """Byte for byte what clients check, HEAD included."""
    async with running_edge(scripted()) as running, client(running.port) as raw:
        for _ in range(2):
            reply = await raw.ask("GET", "/")
            assert (reply.body, reply.headers["content-type"]) == (b"Ollama is running", "text/plain; charset=utf-8")
            assert (await raw.ask("HEAD", "/")).headers["content-length"] == "17"
        assert (await raw.ask("GET", "/api/version?x=1")).body == b'{"version":"0.33.0"}'


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/nope", 404, None),
        ("POST", "/v1/systemone", 404, None),
        ("POST", "/v1/messages/count_tokens", 404, None),
        ("GET", "/debug/pprof/", 404, None),
        ("GET", "/metrics", 404, None),
        ("GET", "/api/version;x", 404, None),
        ("GET", "/api/version%00", 404, None),
        ("GET", "/API/version", 404, None),
        ("POST", "/api/tags", 405, "HEAD, GET"),
        ("GET", "/api/generate", 405, "POST"),
        ("GET", "/api/blobs/sha256:00", 405, "HEAD, POST"),
        ("TRACE", "/api/chat", 405, "POST"),
    ],
)
async def test_an_unknown_path_or_method_gets_gins_answer_e10(
    method: str, target: str, status: int, allow: str
) -> None:
    """404 and 405 with gin's texts; nothing is sent upstream."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask(method, target)
        assert (reply.status, reply.headers.get("allow"), reply.headers["content-type"]) == (
            status,
            allow,
            "text/plain",
        )
        assert reply.body == (b"404 page not found" if status == 404 else b"405 method not allowed")
        assert not asked(dispatcher)


@pytest.mark.parametrize(
    ("method", "target", "status", "location"),
    [
        ("GET", "/api/tags/", 301, "/api/tags"),
        ("POST", "/api/chat/", 307, "/api/chat"),
        ("DELETE", "//api/delete", 307, "/api/delete"),
        ("GET", "/api/x/../tags", 307, "/api/tags"),
        ("GET", "/api/./tags", 307, "/api/tags"),
    ],
)
async def test_an_unclean_path_is_redirected_to_its_clean_form_e4(
    method: str, target: str, status: int, location: str
) -> None:
    """As by Ollama; the right is checked for the request with the clean path."""
    async with running_edge(scripted()) as running, client(running.port) as raw:
        reply = await raw.ask(method, target)
        assert (reply.status, reply.headers["location"]) == (status, location)


@pytest.mark.parametrize(
    ("method", "target", "location", "body"),
    [
        ("GET", "//api/tags?x=1", "/api/tags?x=1", b'<a href="/api/tags?x=1">Temporary Redirect</a>.\n\n'),
        ("GET", "/api/tags/?a=1&b", "/api/tags?a=1&b", b'<a href="/api/tags?a=1&amp;b">Moved Permanently</a>.\n\n'),
        ("GET", "//api/tags?\"'", "/api/tags?\"'", b'<a href="/api/tags?&#34;&#39;">Temporary Redirect</a>.\n\n'),
        ("HEAD", "//api/tags?x=1", "/api/tags?x=1", b""),
        ("POST", "//api/chat?x=1", "/api/chat?x=1", b""),
    ],
)
async def test_a_redirect_keeps_the_query_and_has_gos_page(
    method: str, target: str, location: str, body: bytes
) -> None:
    """The page is for GET only, its type for HEAD too; what is in the query cannot leave the attribute."""
    async with running_edge(scripted()) as running, client(running.port) as raw:
        reply = await raw.ask(method, target)
        assert (reply.headers["location"], reply.body) == (location, body)
        assert reply.headers.get("content-type") == (None if method == "POST" else "text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("target", "host", "status", "allow"),
    [
        ("*", "localhost", 200, None),
        ("*", "127.0.0.1", 200, None),
        ("*", "evil.example", 403, None),
        ("/api/chat", "localhost", 204, "POST"),
        ("/nope", "localhost", 204, None),
        ("/api/chat", "127.0.0.1", 405, "POST"),
    ],
)
async def test_options_without_an_origin_are_answered_as_by_ollama(
    target: str, host: str, status: int, allow: str | None
) -> None:
    """`*` asks the server as a whole; under a name of the host any path has options."""
    async with running_edge(scripted()) as running, client(running.port) as raw:
        reply = await raw.ask("OPTIONS", target, host=host)
        assert (reply.status, reply.headers.get("allow")) == (status, allow)
        assert ("content-length" in reply.headers) is (status != 204)


# Rights


@pytest.mark.parametrize("route", [route for route in ROUTES if route.right in ("manage", "account")], ids=str)
async def test_beyond_loopback_management_needs_a_key_g1_g2(route: object) -> None:
    """403 with a string `error` (401 for `/api/me`, which the CLI reads as signed out); nothing is sent upstream."""
    dispatcher = scripted()
    target = route.pattern.replace(":digest", "sha256:" + "0" * 64).replace(":key", "k")  # type: ignore[attr-defined]
    async with running_edge(dispatcher, OPEN_HOUSE) as running, client(running.port) as raw:
        for spelling in (target, target.replace("/api", "/%61pi")):
            reply = await raw.ask(route.method, spelling, None if route.method == "HEAD" else '{"model":"m"}')  # type: ignore[attr-defined]
            assert reply.status == (401 if route.kind == "me" else 403)  # type: ignore[attr-defined]
        assert not asked(dispatcher)


async def test_beyond_loopback_inference_and_lists_need_no_key_g2() -> None:
    """Except for cloud models, whose requests leave the network."""
    dispatcher = scripted()
    async with running_edge(dispatcher, OPEN_HOUSE) as running, client(running.port) as raw:
        assert (await raw.ask("POST", "/api/chat", CHAT)).status == 200
        assert (await raw.ask("GET", "/api/tags")).status == 200
        assert (await raw.ask("GET", "/api/status")).json() == {"cloud": {"disabled": True, "source": "config"}}
        for name in ("x:cloud", "X:8b-Cloud"):
            assert (await raw.ask("POST", "/api/chat", CHAT.replace('"m"', f'"{name}"'))).status == 403
        assert [call.may_use_remote for call in dispatcher.calls] == [False]  # for names that do not show it


@pytest.mark.parametrize("settings", [EdgeSettings(), EdgeSettings(is_loopback=False, insecure_no_auth=True)])
async def test_on_loopback_or_by_configuration_management_needs_no_key(settings: EdgeSettings) -> None:
    """All of Ollama's routes are passed on, and changes of the catalog are reported to the directory."""
    dispatcher = scripted(b'{"status":"success"}')
    async with running_edge(dispatcher, settings) as running, client(running.port) as raw:
        for method, target in [("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", "/api/create")]:
            reply = await raw.ask(method, target, '{"model":"m","stream":false}')
            assert (reply.status, reply.body) == (200, b'{"status":"success"}')
        assert (await raw.ask("POST", "/api/me")).status == 200
        assert [(sent.method, sent.target, sent.body) for sent in asked(dispatcher)][1:] == [
            (b"DELETE", b"/api/delete", b'{"model":"m","stream":false}'),
            (b"POST", b"/api/create", b'{"model":"m","stream":false}'),
            (b"POST", b"/api/me", None),
        ]
        assert dispatcher.catalog_changes == 3
        assert all(sent.target == b"/api/pull" or not sent.safe_to_resend for sent in asked(dispatcher))


# Headers


async def test_only_harmless_headers_go_upstream_e5_e6() -> None:
    """Keys, cookies, origins, forwarding headers and headers named by `Connection` are not sent."""
    sent = [
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Accept", "*/*"),
        ("User-Agent", "GitHubCopilotChat/1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("anthropic-version", "2026-10-21"),
        ("Authorization", "Bearer secret"),
        ("x-api-key", "secret"),
        ("Cookie", "secret"),
        ("Origin", "http://localhost:3000"),
        ("Referer", "http://secret"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Forwarded", "for=1.2.3.4"),
        ("Keep-Alive", "5"),
        ("TE", "trailers"),
        ("tracestate", "secret"),
        ("Connection", "keep-alive, tracestate"),
    ]
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            assert (await raw.ask("POST", "/api/chat", CHAT, sent)).status == 200
            lines = upstream.requests[0][0].decode().strip().split("\r\n")[1:]
            assert [line.split(":")[0] for line in lines] == [
                "host", "accept-encoding", "content-type", "accept", "user-agent", "traceparent", "anthropic-version",
                "content-length",
            ]  # fmt: skip
            assert lines[0] == f"host: 127.0.0.1:{upstream.port}"
            assert "secret" not in str(upstream.requests)


async def test_hop_by_hop_headers_of_the_upstream_are_not_passed_on_e5_e8() -> None:
    """Nor are headers that `Connection` names, nor trailers."""

    async def script(visit: Visit) -> None:
        await visit.say(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\n"
            b"Keep-Alive: 5\r\nProxy-Authenticate: x\r\nTrailer: x-late\r\nX-Stays: 1\r\nTransfer-Encoding: chunked\r\n"
            b"\r\n" + chunk(b'{"done":true}') + b"0\r\nX-Late: 1\r\n\r\n"
        )

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT)
            assert reply.headers["x-stays"] == "1"
            dropped = {"x-hop", "keep-alive", "proxy-authenticate", "trailer", "x-late", "connection"}
            assert not dropped & set(reply.headers)


async def test_a_redirect_of_the_upstream_is_passed_on_not_followed_e9(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one request upstream, and proxy variables of the environment are ignored."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            assert (await raw.ask("POST", "/api/chat", CHAT)).status == 302
            assert len(upstream.requests) == 1


async def test_router_headers_can_be_turned_off() -> None:
    """`X-Router-*` and the request id are on answers unless the configuration disables them."""
    for wanted in (True, False):
        settings = EdgeSettings(has_router_headers=wanted)
        async with running_edge(scripted(), settings) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT, [("X-Request-Id", "abc")])
            assert ("x-router-model" in reply.headers, reply.headers.get("x-request-id")) == (
                wanted,
                "abc" if wanted else None,
            )


async def test_the_clients_own_demands_reach_the_dispatcher() -> None:
    """`X-Router-Strict` and `X-Router-Nothing-Fits`; an invalid value is a 400."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        await raw.ask("POST", "/api/chat", CHAT, [("X-Router-Strict", "true"), ("X-Router-Nothing-Fits", "wait")])
        await raw.ask("POST", "/api/chat", CHAT)
        assert [(call.strict, call.nothing_fits) for call in dispatcher.calls] == [(True, "wait"), (False, None)]
        assert (await raw.ask("POST", "/api/chat", CHAT, [("X-Router-Nothing-Fits", "pray")])).status == 400
        assert (await raw.ask("POST", "/api/chat", CHAT, [("X-Router-Strict", "banana")])).status == 400


# Errors

BUSY = "server busy, please try again.  maximum pending requests exceeded"
ERRORS: list[tuple[RouterError, int, str, str]] = [
    (Busy(), 503, "api_error", "overloaded_error"),
    (NoVariantFits("nothing fits", retry_after_s=2.5), 503, "api_error", "overloaded_error"),
    (NeverFits("nothing fits"), 503, "api_error", "api_error"),
    (ModelNotFound("model 'm' not found"), 404, "not_found_error", "not_found_error"),
    (UpstreamTimeout("late"), 504, "api_error", "api_error"),
    (UpstreamError("gone"), 502, "api_error", "api_error"),
    (LoadFailed("boom"), 500, "api_error", "api_error"),
]


@pytest.mark.parametrize(("error", "status", "openai", "anthropic"), ERRORS, ids=lambda value: str(value)[:20])
async def test_an_error_has_the_shape_of_its_dialect_b4_b5_c4(
    error: RouterError, status: int, openai: str, anthropic: str
) -> None:
    """A string on `/api/*`, OpenAI's and Anthropic's envelopes on `/v1/*`; with Retry-After and x-should-retry."""

    async def before(_call: Call) -> None:
        raise error

    dispatcher = scripted()
    dispatcher.before = before
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        native = await raw.ask("POST", "/api/chat", CHAT)
        assert (native.status, native.json()) == (status, {"error": error.message})
        assert native.headers["content-type"] == "application/json; charset=utf-8"
        reply = await raw.ask("POST", "/v1/chat/completions", CHAT)
        value = {"message": error.message, "type": openai, "param": None, "code": None}
        assert (reply.status, reply.json(), reply.body[-1:]) == (status, {"error": value}, b"\n")
        messages = await raw.ask("POST", "/v1/messages", CHAT[:-1] + ',"max_tokens":1}')
        value = messages.json()
        assert (messages.status, value["type"]) == (status, "error")
        assert value["error"] == {"type": anthropic, "message": error.message}
        assert value["request_id"].startswith("req_")
        retry_after = {"Busy": "1", "NoVariantFits": "3"}.get(type(error).__name__)
        assert native.headers.get("retry-after") == retry_after
        is_started = isinstance(error, (UpstreamError, LoadFailed, NeverFits))
        assert reply.headers.get("x-should-retry") == ("false" if is_started else None)


async def test_the_busy_body_is_ollamas_b5() -> None:
    """Byte for byte, two spaces included."""

    async def before(_call: Call) -> None:
        raise Busy

    dispatcher = scripted()
    dispatcher.before = before
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/api/generate", '{"model":"m","prompt":"x"}')
        assert reply.body == f'{{"error":"{BUSY}"}}'.encode()


async def test_an_upstreams_own_error_passes_untouched_c4() -> None:
    """Status and body are unchanged; a failed generation is marked so that SDKs do not retry it."""
    body = b'{"error":"an error was encountered while running the model: unexpected EOF"}'
    for status in (400, 404, 500, 503):
        async with running_edge(scripted(body, status)) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT)
            assert (reply.status, reply.body) == (status, body)
            assert ("x-should-retry" in reply.headers) is (status == 500)


async def test_an_invalid_body_is_refused_with_gos_text() -> None:
    """400; nothing is sent upstream."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        assert (await raw.ask("POST", "/api/chat", "")).json() == {"error": "missing request body"}
        assert (await raw.ask("POST", "/api/chat", "{")).json() == {"error": "unexpected EOF"}
        reply = await raw.ask("POST", "/v1/chat/completions", "{")
        assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        assert not dispatcher.calls


async def test_an_internal_error_is_a_500_without_details() -> None:
    """The traceback is in the log, not in the answer."""

    async def before(_call: Call) -> None:
        raise KeyError("secret")

    dispatcher = scripted()
    dispatcher.before = before
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/api/chat", CHAT)
        assert (reply.status, reply.json()) == (500, {"error": "internal error"})
        assert (await raw.ask("GET", "/")).status == 200


# Bodies


async def test_a_body_over_the_limit_is_413_f5() -> None:
    """Immediately by its declared length, or at the first chunk beyond the limit; then the connection is closed."""
    dispatcher = scripted()
    async with running_edge(dispatcher, EdgeSettings(body_bytes=1000)) as running:
        async with client(running.port) as raw:
            await raw.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n{")
            reply = await raw.reply()
            assert (reply.status, reply.headers["connection"]) == (413, "close")
        async with client(running.port) as raw:
            await raw.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                await raw.send(chunk(b"x" * 400))
            reply = await raw.reply()
            assert (reply.status, reply.json()["error"]["type"]) == (413, "invalid_request_error")
        async with client(running.port) as raw:
            assert (await raw.ask("POST", "/api/chat", "x" * 1001)).status == 413
        assert not dispatcher.calls


async def test_a_body_that_stalls_is_408_b2() -> None:
    """The idle timeout ends a stall, the total timeout a slow transfer."""
    for settings in (EdgeSettings(body_idle_s=0.05), EdgeSettings(body_idle_s=9, body_total_s=0.05)):
        async with running_edge(scripted(), settings) as running, client(running.port) as raw:
            await raw.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            reply = await raw.reply()
            assert (reply.status, reply.headers["connection"]) == (408, "close")


async def test_a_client_that_leaves_during_its_body_causes_no_call() -> None:
    """Half a body, then a disconnect: no call, and no error in the log."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running:
        raw = await RawClient.to(running.port)
        await raw.send(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        await asyncio.sleep(0.01)
        raw.close()
        await asyncio.sleep(0.02)
        assert running.listener.open_connections == 0
        assert not dispatcher.calls


async def test_zstd_is_decoded_where_ollama_decodes_it_f6() -> None:
    """On `/v1/*` only, up to 20 MiB; a bomb is refused. Elsewhere the header is ignored, and the body is bad JSON."""
    dispatcher = scripted()
    packed = zstandard.ZstdCompressor().compress(CHAT.encode())
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        zstd = [("Content-Encoding", "zstd")]
        assert (await raw.ask("POST", "/v1/chat/completions", packed, zstd)).status == 200
        assert dispatcher.calls[0].body == CHAT.encode()
        assert (await raw.ask("POST", "/v1/chat/completions", bomb, zstd)).status == 413
        reply = await raw.ask("POST", "/v1/chat/completions", CHAT, zstd)
        assert (reply.status, reply.json()["error"]["message"]) == (400, "invalid input: magic number mismatch")
        assert (await raw.ask("POST", "/v1/chat/completions", packed[:20], zstd)).status == 400
        gzip = [("Content-Encoding", "gzip")]
        for path in ("/v1/chat/completions", "/api/chat"):
            reply = await raw.ask("POST", path, b"\x1f\x8b123", gzip)
            assert reply.status == 400
            assert rb"invalid character '\\x1f' looking for beginning of value" in reply.body
        reply = await raw.ask("POST", "/api/chat", packed, zstd)
        assert (reply.status, reply.json()["error"]) == (400, "invalid character '(' looking for beginning of value")
        assert (await raw.ask("POST", "/api/chat", CHAT, gzip)).status == 200
        assert (await raw.ask("POST", "/api/chat", CHAT, zstd)).status == 200


async def test_any_content_type_is_accepted_f7() -> None:
    """curl's form type, none, text/plain: Ollama ignores it."""
    async with running_edge(scripted()) as running, client(running.port) as raw:
        for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=latin-1"):
            assert (await raw.ask("POST", "/api/chat", CHAT, [("Content-Type", kind)])).status == 200
        assert (await raw.ask("POST", "/api/chat", CHAT)).status == 200


async def test_a_body_of_twenty_megabytes_arrives_unchanged_f8() -> None:
    """The dispatcher gets exactly the bytes that were sent."""
    body = CHAT[:-1] + ',"images":["' + "A" * (20 << 20) + '"]}'
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        assert (await raw.ask("POST", "/api/chat", body)).status == 200
        assert dispatcher.calls[0].body == body.encode()


async def test_an_upload_is_streamed_in_both_framings_f9() -> None:
    """24 MB pass without being buffered; an invalid digest is refused before anything is sent."""
    size, block = 24 << 20, b"b" * 65536
    target = "/api/blobs/sha256:" + "0" * 64
    async with raw_upstream(answer(b"", status=b"201 Created")) as upstream:
        settings = EdgeSettings(body_bytes=1000)
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), settings) as running:
            async with client(running.port) as raw:
                await raw.send(request_bytes("POST", target, None, [("Content-Length", str(size))]))
                for _ in range(size // len(block)):
                    await raw.send(block)
                assert (await raw.reply()).status == 201
                await raw.send(request_bytes("POST", target, None, [("Transfer-Encoding", "chunked")]))
                for _ in range(10):
                    await raw.send(chunk(block))
                await raw.send(b"0\r\n\r\n")
                assert (await raw.reply()).status == 201
                assert [len(body) for _, body in upstream.requests] == [size, 10 * len(block)]
            async with client(running.port) as raw:
                reply = await raw.ask("POST", "/api/blobs/sha256:XYZ", b"x")
                assert (reply.status, reply.json()) == (400, {"error": "invalid digest format"})
            assert len(upstream.requests) == 2


async def test_an_upload_whose_client_leaves_is_cancelled_a1() -> None:
    """The upstream's connection is cut, so that it does not take half a blob for a whole one."""

    async def script(visit: Visit) -> None:
        visit.upstream.gone_at.append(await visit.gone())

    async with raw_upstream(script, reads_bodies=False) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            target = "/api/blobs/sha256:" + "0" * 64
            await raw.send(request_bytes("POST", target, None, [("Content-Length", "1000")]) + b"half")
            await asyncio.sleep(0.03)
            raw.close()
            await asyncio.sleep(0.03)
            assert len(upstream.gone_at) == 1


# Lists

TAGS = json.dumps(
    {
        "models": [
            {
                "name": "big:q4",
                "model": "big:q4",
                "size": 9,
                "digest": "a" * 64,
                "capabilities": ["completion", "tools"],
            },
            {"name": "small:1b", "model": "small:1b", "size": 3, "digest": "b" * 64, "capabilities": ["completion"]},
            {"name": "router-tag:1", "model": "router-tag:1", "size": 9, "digest": "c" * 64},
        ]
    },
    separators=(",", ":"),
).encode()


async def test_lists_without_changes_are_relayed_byte_for_byte() -> None:
    """Even `null` for no models."""
    for target, body in [
        ("/api/tags", TAGS),
        ("/api/ps", b'{"models":[]}'),
        ("/v1/models", b'{"object":"list","data":null}\n'),
        ("/api/show", b'{"details":{},"model_info":{}}'),
    ]:
        async with running_edge(scripted(body)) as running, client(running.port) as raw:
            reply = await raw.ask("POST" if target == "/api/show" else "GET", target, '{"model":"m"}')
            assert reply.body == body


async def test_tags_show_chains_and_hide_derived_tags() -> None:
    """A chain is listed with its best variant's facts and the capabilities common to all variants."""
    dispatcher = scripted(TAGS)
    dispatcher.virtual = [VirtualModel("mine", ("big:q4", "small:1b"))]
    dispatcher.hidden = {"router-tag:1": "big:q4"}
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        rows = (await raw.ask("GET", "/api/tags")).json()["models"]
        assert [row["name"] for row in rows] == ["big:q4", "small:1b", "mine:latest"]
        assert rows[2] == {
            "name": "mine:latest", "model": "mine:latest", "size": 9, "digest": "a" * 64, "capabilities": ["completion"]
        }  # fmt: skip
        assert (await raw.ask("HEAD", "/api/tags")).status == 200


async def test_ps_shows_variants_with_the_expiry_that_clients_requested() -> None:
    """A derived tag is shown as its variant; sizes are the upstream's."""
    body = b'{"models":[{"name":"router-tag:1","model":"router-tag:1","size":9,"expires_at":"2026-01-01T00:00:00Z"}]}'
    dispatcher = scripted(body)
    dispatcher.hidden = {"router-tag:1": "big:q4"}
    dispatcher.expiries = {"router-tag:1": datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)}
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        row = (await raw.ask("GET", "/api/ps")).json()["models"][0]
        assert row == {"name": "big:q4", "model": "big:q4", "size": 9, "expires_at": "2026-11-24T01:02:03Z"}


async def test_a_chain_can_be_shown_like_a_model() -> None:
    """`/api/show` shows the variant, as the parent model; `/v1/models` and `/v1/models/:model` have the chain."""
    dispatcher = scripted(b'{"details":{"parent_model":"","family":"llama"},"model_info":{"x":1}}')
    dispatcher.virtual = [VirtualModel("mine", ("big:q4",))]
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        shown = (await raw.ask("POST", "/api/show", '{"model":"","name":"mine","verbose":true}')).json()
        assert shown["details"] == {"parent_model": "big:q4", "family": "llama"}
        assert json.loads(asked(dispatcher)[0].body or b"")["model"] == "big:q4"  # type: ignore[arg-type]
    dispatcher = scripted(b'{"object":"list","data":[{"id":"big:q4","object":"model"}]}\n')
    dispatcher.virtual = [VirtualModel("mine", ("big:q4",))]
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        data = (await raw.ask("GET", "/v1/models")).json()["data"]
        assert [row["id"] for row in data] == ["big:q4", "mine:latest"]
    dispatcher = scripted(b'{"id":"big:q4","object":"model"}\n')
    dispatcher.virtual = [VirtualModel("mine", ("big:q4",))]
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        assert (await raw.ask("GET", "/v1/models/mine")).json()["id"] == "mine"
        assert asked(dispatcher)[0].target == b"/v1/models/big:q4"


async def test_a_chain_cannot_be_pulled_or_deleted() -> None:
    """403 with the variants' names, which the CLI prints."""
    dispatcher = scripted()
    dispatcher.virtual = [VirtualModel("mine", ("big:q4",))]
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        for method, target in [("POST", "/api/pull"), ("DELETE", "/api/delete")]:
            reply = await raw.ask(method, target, '{"model":"","name":"MINE:latest"}')
            assert reply.status == 403
            assert "big:q4" in reply.json()["error"]
        assert not asked(dispatcher)


async def test_a_chain_cannot_be_copied_but_its_variants_can() -> None:
    """404, as for any name that is no model, with what to copy; to copy onto a chain is a 403."""
    dispatcher = scripted()
    dispatcher.virtual = [VirtualModel("mine", ("big:q4", "small:q4"))]
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/api/copy", '{"source":"Mine:latest","destination":"other"}')
        assert reply.status == 404
        assert reply.json()["error"] == (
            "'Mine:latest' is a chain of this router, not a model; copy one of its variants: big:q4, small:q4"
        )
        reply = await raw.ask("POST", "/api/copy", '{"source":"big:q4","destination":"mine"}')
        assert reply.status == 403
        assert not asked(dispatcher)


async def test_readiness_is_reported_on_the_clients_port_too() -> None:
    """200 with details, or 503."""
    for ready in (True, False):
        dispatcher = scripted()
        dispatcher.ready = ready
        async with running_edge(dispatcher) as running, client(running.port) as raw:
            reply = await raw.ask("GET", "/readyz")
            assert (reply.status, reply.json()["upstream"]) == (200 if ready else 503, ready)


@pytest.mark.parametrize(
    ("method", "target", "sent", "expected"),
    [
        ("POST", "/api/pull", '{"Model":"x","model":"a","NAME":"b"}', b'{"model":"a"}'),
        ("POST", "/api/pull", '{"model":"","name":"c","stream":false}', b'{"model":"c","stream":false}'),
        ("DELETE", "/api/delete", '{"name":"d"}', b'{"model":"d"}'),
        ("POST", "/api/copy", '{"source":"a","Source":"b","destination":"c"}', b'{"source":"b","destination":"c"}'),
        ("POST", "/api/create", '{"from":"a","FROM":"b","model":"c"}', b'{"model":"c","from":"b"}'),
    ],
)
async def test_a_management_body_goes_upstream_with_each_name_once_f2(
    method: str, target: str, sent: str, expected: bytes
) -> None:
    """So Ollama sees exactly the names that the router has checked."""
    async with raw_upstream(answer(b'{"status":"success"}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            assert (await raw.ask(method, target, sent)).status == 200
            assert json.loads(upstream.requests[-1][1]) == json.loads(expected)
            assert upstream.requests[-1][1].lower().count(b'"model"') <= 1


async def test_forwarding_headers_of_a_client_are_ignored_e7() -> None:
    """X-Forwarded-For and Forwarded change neither the client's address nor the request upstream."""
    seen: list[object] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with Listener(Asgi(app)) as listener:
        raw = await RawClient.to(listener.port)
        headers = [("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=1.2.3.4"), ("X-Real-Ip", "1.2.3.4")]
        assert (await raw.ask("GET", "/", None, headers)).status == 204
        raw.close()
    assert seen == ["127.0.0.1"]


NO_NAMES = ["a" * 641, "a\x00b", "a\x1b[31mb", "a\x7f"]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize(
    ("method", "path", "role", "text"),
    [
        ("POST", "/api/chat", "model", "invalid model name"),
        ("POST", "/api/embed", "model", "invalid model name"),
        ("POST", "/v1/chat/completions", "model", "invalid model name"),
        ("POST", "/api/show", "name", "invalid model name"),
        ("POST", "/api/pull", "model", "invalid model name"),
        ("DELETE", "/api/delete", "name", "name "),
        ("POST", "/api/copy", "source", "source "),
    ],
)
async def test_what_is_no_name_is_refused_as_by_ollama(name: str, method: str, path: str, role: str, text: str) -> None:
    """Nothing of it reaches the upstream, and no control character comes back."""
    async with raw_upstream(answer(b"{}")) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            reply = await raw.ask(
                method, path, json.dumps({role: name, "messages": [{"role": "user", "content": "x"}]})
            )
            assert reply.status == 400
            error = reply.json()["error"]
            assert (error if isinstance(error, str) else error["message"]).startswith(text)
            assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", reply.body)
            assert not upstream.requests
            raw.close()
