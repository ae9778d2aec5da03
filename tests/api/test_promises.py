"""Statements of docs/reliability.md about the edge, each with the variants that could break it."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest

from router.api.beside import is_large
from router.api.settings import EdgeSettings
from router.core.ollama.routes import ROUTES
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamResponse
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.raw_upstream import STREAM_HEAD, Visit, answer, chunk, raw_upstream
from tests.http.scripted_relay import ScriptedRelay

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}]}'
OPEN_HOUSE = EdgeSettings(is_loopback=False)
DIGEST = "sha256:" + "0" * 64
CHANGING = [route for route in ROUTES if route.right in ("manage", "account")]


def scripted() -> FakeDispatcher:
    return FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, (), b'{"done":true}')))


def target_of(route) -> str:
    return route.pattern.replace(":digest", DIGEST).replace(":key", "k")


# --- who may do what -------------------------------------------------------------------------------------------------

KEYS = [
    [],
    [("Authorization", "Bearer sk-anything")],
    [("Authorization", "Basic dXNlcjpwYXNz")],
    [("x-api-key", "sk-anything")],
    [("Cookie", "session=1"), ("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1;host=localhost")],
    [("X-HTTP-Method-Override", "GET"), ("X-Original-URL", "/api/tags"), ("X-Rewrite-URL", "/api/tags")],
]


@pytest.mark.parametrize("route", CHANGING, ids=str)
async def test_beyond_loopback_nothing_that_a_client_says_lets_it_change_anything_g1_g2_e3(route) -> None:
    """No key, cookie or forwarding header, no spelling of the path, no query, no Host: nothing goes upstream."""
    dispatcher, target = scripted(), target_of(route)
    spellings = [
        target,
        target.replace("/api", "/%61pi"),
        target.replace("/api", "//api"),
        target.replace("/api", "/./api"),
        target.replace("/api", "/api/tags/../../api"),
        target.replace("/api/", "/API/"),
        target + "/",
        target + "?key=sk-anything&token=x",
        target + "%00",
        f"http://127.0.0.1{target}",
    ]
    body = None if route.method == "HEAD" else '{"model":"m","name":"m","source":"m","destination":"n"}'
    async with running_edge(dispatcher, OPEN_HOUSE) as running:
        for number, spelling in enumerate(spellings):
            async with client(running.port) as raw:
                reply = await raw.ask(route.method, spelling, body, KEYS[number % len(KEYS)])
                assert reply.status in ((301, 307, 400, 401, 403, 404, 405) if number else (401, 403))
        for headers in KEYS:
            async with client(running.port) as raw:
                assert (await raw.ask(route.method, target, body, headers)).status in (401, 403)
        assert not dispatcher.relay.requests  # type: ignore[attr-defined]
        assert not dispatcher.calls


# --- origins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "target", ["/", "/readyz", "/api/tags", "/api/chat", f"/api/blobs/{DIGEST}", "/nope", "/api//x"]
)
async def test_a_page_of_another_origin_gets_a_403_on_every_method_and_path_e11(method: str, target: str) -> None:
    """Whatever it asks for, nothing goes upstream, and it may not read the answer."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        body = None if method in ("GET", "HEAD", "OPTIONS") else "{}"
        reply = await raw.ask(method, target, body, [("Origin", "http://evil.example")])
        assert reply.status == 403
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert not dispatcher.relay.requests  # type: ignore[attr-defined]
        assert not dispatcher.calls


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/show", "/api/pull", "/v1/messages"])
@pytest.mark.parametrize("name", ["m\r\nX-Evil: 1\r\n\r\n", "m\nX-Evil: 1", "m\rX-Evil: 1", "\u010a\u010dX-Evil: 1"])
async def test_a_name_with_line_breaks_never_becomes_a_header_e8(path: str, name: str) -> None:
    """Neither in the router's own headers nor in those upstream, nor in an error."""
    body = json.dumps({"model": name, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]})
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            reply = await raw.ask("POST", path, body, [("X-Request-Id", "a\u008db\u0085c")])
            assert "x-evil" not in reply.headers
            assert not reply.is_cut
            assert (await raw.ask("GET", "/")).status == 200  # one answer each
            assert all(b"x-evil" not in head.lower() for head, _ in upstream.requests)


@pytest.mark.parametrize(
    "name", ["Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "Proxy-Authorization", "Proxy-X"]
)
async def test_a_header_of_one_hop_ends_here_in_both_directions_e5(name: str) -> None:
    """One that `Connection` names as well, however it is spelled there."""
    value = {"Connection": "keep-alive, x-private", "TE": "trailers", "Upgrade": "h2c"}.get(name, "secret")
    named = "keep-alive" if name == "Connection" else f"keep-alive,{name.upper()}"

    async def script(visit: Visit) -> None:
        extra = b"" if name == "Connection" else f"{name}: {value}\r\n".encode()
        await visit.say(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Private: 1\r\nX-Stays: 1\r\n"
            + extra
            + f"Connection: {value if name == 'Connection' else named}\r\n".encode()
            + b'Content-Length: 13\r\n\r\n{"done":true}'
        )

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            headers = [(name, value)] if name == "Connection" else [(name, value), ("Connection", named)]
            reply = await raw.ask("POST", "/api/chat", CHAT, headers)
            lines = upstream.requests[0][0].lower().split(b"\r\n")
            assert not [line for line in lines if line.startswith((name.lower().encode() + b":", b"x-private"))]
            if reply.status == 200:
                assert reply.headers["x-stays"] == "1"
                assert name == "Connection" or name.lower() not in reply.headers
                assert (name == "Connection") is ("x-private" not in reply.headers)


# --- bodies ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "one long text": '{"model":"m","prompt":"' + "x" * (1 << 20) + '"}',
    "an image": '{"model":"m","prompt":"x","images":["' + "A" * (1 << 20) + '"]}',
    "repeated options": '{"model":"m",' + '"options":{},' * 40_000 + '"prompt":"x"}',
    "a long keep_alive": '{"model":"m","keep_alive":"' + "1s" * 200_000 + '","prompt":"x"}',
    "content parts": '{"model":"m","messages":[{"role":"user","content":['
    + ",".join(['{"type":"text","text":"x"}'] * 20_000)
    + "]}]}",
    "unknown keys": '{"model":"m",' + ",".join(f'"k{number}":1' for number in range(60_000)) + "}",
    "numbers": '{"model":"m","input":[' + "1," * 100_000 + "1]}",
    "nesting": '{"model":"m","x":' + "[" * 300_000 + "]" * 300_000 + "}",
    "few bytes with many values": '{"model":"m","x":[' + "1," * 10_000 + "1]}",
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions", "/api/embed", "/api/show"])
async def test_no_shape_of_a_body_is_read_on_the_loop_f8(shape: str, path: str) -> None:
    """Whatever takes long is read beside it, and has one answer."""
    body = SHAPES[shape]
    assert is_large(body.encode(), EdgeSettings().inline_bytes)
    async with running_edge(scripted()) as running, client(running.port) as raw:
        reply = await raw.ask("POST", path, body)
        assert reply.status in (200, 400, 413)
        assert (await raw.ask("GET", "/")).status == 200


async def test_an_upload_of_64_mb_holds_little_memory_f9() -> None:
    """Its pieces are passed on as they come: what is held at once is a fraction of it."""
    size, block = 64 << 20, b"b" * 65536

    async def script(visit: Visit) -> None:
        left = size
        while left:
            left -= len(await visit.reader.read(65536))
        await answer(b"", status=b"201 Created")(visit)

    async with raw_upstream(script, reads_bodies=False) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            await raw.send(request_bytes("POST", f"/api/blobs/{DIGEST}", None, [("Content-Length", str(size))]))
            tracemalloc.start()
            try:
                for _ in range(size // len(block)):
                    await raw.send(block)
                assert (await raw.reply()).status == 201
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 6 << 20  # those of client and upstream, which are in this process, included


@pytest.mark.parametrize(
    "digest", ["sha256:" + "0" * 63, "sha256:" + "G" * 64, "md5:" + "0" * 32, "..%2F..%2Fetc", "x"]
)
@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_a_malformed_digest_is_refused_f9(digest: str, method: str) -> None:
    """Before a byte of it goes upstream."""
    dispatcher = scripted()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask(method, f"/api/blobs/{digest}", b"x" if method == "POST" else None)
        assert reply.status in (307, 400, 404)
        assert not dispatcher.relay.requests  # type: ignore[attr-defined]


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20, 12_000_000])
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_line_of_any_length_passes_whole_a13(size: int, pieces: int) -> None:
    """In one chunk or cut anywhere, on a route whose lines are read and on one whose are not."""
    big = b'{"model":"m","response":"' + b"y" * size + b'","done":true}\n'
    step = max(1, len(big) // pieces)
    parts = [big[at : at + step] for at in range(0, len(big), step)]

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            assert (await raw.ask("POST", "/api/chat", CHAT)).body == big


async def test_little_is_held_for_a_client_that_does_not_read_a14() -> None:
    """Of an answer of 80 MB; the upstream waits, and nothing is lost when the client reads on."""
    block = b'{"text":"' + b"z" * 65000 + b'"}\n'
    count = (80 << 20) // len(block)

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD)
        for _ in range(count):
            await visit.say(chunk(block))
        await visit.say(chunk(b'{"done":true}\n') + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port, receive_buffer=4096)
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            tracemalloc.start()
            try:
                await raw.send(request_bytes("POST", "/api/chat", CHAT))
                last = -1
                while tracemalloc.get_traced_memory()[0] != last:  # until nothing moves any more
                    last = tracemalloc.get_traced_memory()[0]
                    await asyncio.sleep(0.2)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 8 << 20
            raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert len((await raw.reply()).body) == count * len(block) + len(b'{"done":true}\n')
            raw.close()
