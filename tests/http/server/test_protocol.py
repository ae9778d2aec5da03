"""The server side: ambiguous requests are refused once, and every wait and every buffer is bounded."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamResponse
from router.http.server.asgi import Asgi
from router.http.server.cycle import Cycle
from router.http.server.limits import WireLimits
from router.http.server.listener import Listener
from router.http.server.protocol import SLICE_BYTES, HttpProtocol
from tests.fakes import FakeDispatcher, RawClient, client, needs_pauses, request_bytes, running_edge
from tests.http.raw_upstream import Visit, answer, raw_upstream
from tests.http.scripted_relay import ScriptedRelay

CHAT = b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}'
HOST = b"Host: localhost\r\n"
SMUGGLED = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"


def fake() -> FakeDispatcher:
    json = ((b"content-type", b"application/json"),)
    return FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, json, b'{"done":true}')))


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/api/chat", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"POST " + target + b" " + version, *lines, b"", b""]) + body


LENGTH = b"Content-Length: %d" % len(CHAT)
REFUSED: dict[str, bytes] = {
    "cl-and-te": post(b"Host: a.local", LENGTH, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "te-and-cl": post(b"Host: a.local", b"Transfer-Encoding: chunked", LENGTH, body=b"0\r\n\r\n" + SMUGGLED),
    "two-lengths": post(b"Host: a.local", b"Content-Length: 4", b"Content-Length: 5", body=CHAT),
    "equal-lengths": post(b"Host: a.local", LENGTH, LENGTH, body=CHAT),
    "length-list": post(b"Host: a.local", b"Content-Length: 4, 4", body=CHAT),
    "negative-length": post(b"Host: a.local", b"Content-Length: -1", body=CHAT),
    "plus-length": post(b"Host: a.local", b"Content-Length: +4", body=CHAT),
    "hex-length": post(b"Host: a.local", b"Content-Length: 0x4", body=CHAT),
    "huge-length": post(b"Host: a.local", b"Content-Length: 99999999999999999999999", body=CHAT),
    "te-identity-chunked": post(b"Host: a.local", b"Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n"),
    "te-chunked-twice": post(b"Host: a.local", b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "te-two-lines": post(
        b"Host: a.local", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "te-gzip": post(b"Host: a.local", b"Transfer-Encoding: gzip", body=b"0\r\n\r\n"),
    "te-chunked-gzip": post(b"Host: a.local", b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "te-identity": post(b"Host: a.local", b"Transfer-Encoding: identity", body=CHAT),
    "te-vertical-tab": post(b"Host: a.local", b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "te-http10": post(b"Host: a.local", b"Transfer-Encoding: chunked", version=b"HTTP/1.0", body=b"0\r\n\r\n"),
    "te-underscore": post(b"Host: a.local", b"Transfer_Encoding: chunked", LENGTH, body=CHAT),
    "length-underscore": post(b"Host: a.local", b"Content_Length: 1", LENGTH, body=CHAT),
    "space-before-colon": post(b"Host: a.local", b"Content-Length : 4", body=CHAT),
    "obs-fold": post(b"Host: a.local", b"X: a", b" b", LENGTH, body=CHAT),
    "bare-lf": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "bare-cr": b"GET / HTTP/1.1\rHost: localhost\r\r",
    "chunk-lf": post(b"Host: a.local", b"Transfer-Encoding: chunked", body=b"1\nx\n0\n\n"),
    "chunk-sign": post(b"Host: a.local", b"Transfer-Encoding: chunked", body=b"+1\r\nx\r\n0\r\n\r\n"),
    "chunk-0x": post(b"Host: a.local", b"Transfer-Encoding: chunked", body=b"0x1\r\nx\r\n0\r\n\r\n"),
    "chunk-long": post(b"Host: a.local", b"Transfer-Encoding: chunked", body=b"1\r\nxyz\r\n0\r\n\r\n"),
    "chunk-size-overflow": post(b"Host: a.local", b"Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n"),
    "no-host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "two-hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "odd-host": b"GET / HTTP/1.1\r\nHost: local host\r\n\r\n",
    "host-with-path": b"GET / HTTP/1.1\r\nHost: localhost/api/tags?\r\n\r\n",
    "http09": b"GET /\r\n\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http12": b"GET / HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "http3": b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n",
    "no-slash": b"GET @evil.com HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "authority": b"GET evil.com:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT evil.com:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "userinfo": b"GET http://a@evil.com/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "ftp": b"GET ftp://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lower-method": b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown-method": b"FROB / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nul-in-value": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "control-in-name": b"GET / HTTP/1.1\r\nHost: localhost\r\nX\x01: a\r\n\r\n",
    "tls-hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 60 + b"\r\n\r\n",
    "big-header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "megabyte-header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_100_000 + b"\r\n\r\n",
    "many-headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    "long-target": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad-escape": b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "upgrade-cut": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgr",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_ambiguous_request_is_refused_once_and_the_connection_closed_e1(name: str) -> None:
    """At most one 4xx/5xx, never a second answer, nothing upstream, and the connection is closed."""
    dispatcher = fake()
    limits = WireLimits(header_s=0.3)
    async with running_edge(dispatcher, limits=limits) as running, client(running.port) as raw:
        try:
            await raw.send(REFUSED[name])
            raw.writer.write_eof()
            async with asyncio.timeout(3):
                said = await raw.reader.read()
        except ConnectionError:
            said = b""
        assert said.count(b"HTTP/1.1 ") <= 1, said
        assert b"0.33.0" not in said
        if said:
            assert said[9:12] in (b"400", b"408", b"413", b"414", b"431", b"501", b"505"), said
            assert b"connection: close" in said
        assert not dispatcher.calls


@pytest.mark.parametrize(
    "raw_request",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://localhost/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /?a=b#c HTTP/1.1\r\nHost: localhost\r\nX_Under: 1\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:40]),
)
async def test_an_unambiguous_request_is_served_e1(raw_request: bytes) -> None:
    """In unusual forms too."""
    async with running_edge(fake()) as running, client(running.port) as raw:
        await raw.send(raw_request)
        assert (await raw.reply()).body == b"Ollama is running"


async def test_the_authority_of_an_absolute_target_is_the_host_e2_e3() -> None:
    """So an absolute target cannot evade the Host rule."""
    async with running_edge(fake()) as running, client(running.port) as raw:
        await raw.send(b"GET http://evil.example/api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await raw.reply()).status == 403


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Two requests in one write get two answers in order."""
    async with running_edge(fake()) as running, client(running.port) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED)
        assert (await raw.reply()).body == b"Ollama is running"
        assert (await raw.reply()).json() == {"version": "0.33.0"}


async def test_thousands_of_pipelined_requests_are_taken_a_few_at_a_time_f8() -> None:
    """All are answered in order, though one read brings thousands of them; the last one's body comes with the rest."""
    most = 0

    class Counting(Asgi):
        async def serve(self, cycle: Cycle) -> None:
            nonlocal most
            most = max(most, len(cast("HttpProtocol", cycle.carrier).queue))
            await super().serve(cycle)

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode() + body})

    async with Listener(Counting(echo)) as listener, client(listener.port) as raw:
        asked = b"".join(b"GET /%d HTTP/1.1\r\nHost: x.local\r\n\r\n" % number for number in range(8000))
        last = b"POST /last HTTP/1.1\r\nHost: x.local\r\nContent-Length: 3\r\n\r\nabc"
        raw.writer.write(asked + last)
        for number in range(8000):
            assert (await raw.reply()).body == b"/%d" % number
        assert (await raw.reply()).body == b"/lastabc"
    assert 1 < most <= SLICE_BYTES // 35 + 2


async def test_a_request_after_the_last_one_is_not_answered_e1() -> None:
    """After `Connection: close` no further input is parsed, so a smuggled request is never served."""
    async with running_edge(fake()) as running, client(running.port) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" + SMUGGLED)
        said = await raw.reader.read()
        assert said.count(b"HTTP/1.1 ") == 1
        assert b"0.33.0" not in said


async def test_a_body_that_becomes_invalid_is_refused_once_e1() -> None:
    """An invalid chunk in mid-body: one 400, and the request does not reach the dispatcher."""
    dispatcher = fake()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        await raw.send(post(b"Host: a.local", b"Transfer-Encoding: chunked", body=b"3\r\n{  \r\n"))
        await asyncio.sleep(0.02)
        await raw.send(b"zz\r\n" + SMUGGLED)
        said = await raw.reader.read()
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.count(b"HTTP/1.1 ") == 1
        assert not dispatcher.calls


async def test_an_upgrade_is_ignored_and_the_body_read_e5() -> None:
    """Clients that offer h2c (Java's) are served with HTTP/1.1; nothing is tunnelled, and no byte is lost."""
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            for upgrade in (b"Upgrade: h2c", b"UPGRADE: websocket", b"upgrade:h2c"):
                lines = (
                    b"Host: a.local",
                    b"Connection: Upgrade, HTTP2-Settings",
                    upgrade,
                    b"HTTP2-Settings: x",
                    LENGTH,
                )
                await raw.send(post(*lines, body=CHAT))
                assert (await raw.reply()).status == 200
            for head, body in upstream.requests:
                assert body == CHAT
                assert b"pgrade" not in head.lower()
                assert b"http2-settings" not in head


async def test_expect_continue_is_answered_by_the_router_e5() -> None:
    """With a 100 before the body is sent, or with a refusal alone."""
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            async with client(running.port) as raw:
                await raw.send(post(b"Host: a.local", b"Expect: 100-continue", LENGTH))
                assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                await raw.send(CHAT)
                assert (await raw.reply()).status == 200
                assert b"expect" not in upstream.requests[0][0].lower()
            async with client(running.port) as raw:
                await raw.send(post(b"Host: a.local", b"Expect: 100-continue", b"Content-Length: 999999999"))
                assert (await raw.reply()).status == 413


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_another_expectation_fails_as_in_go_e5(version: bytes) -> None:
    """417, whatever the version; nothing of the body is read, and the connection ends."""
    dispatcher = fake()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        await raw.send(b"POST /api/chat HTTP/%b\r\nHost: localhost\r\nExpect: x\r\nContent-Length: 9\r\n\r\n" % version)
        said = await raw.reader.read()
        assert said.startswith(b"HTTP/1.1 417 Expectation Failed\r\n")
        assert b"connection: close" in said
        assert not dispatcher.calls


@pytest.mark.parametrize("sent", [b"", b"POST /api/ch", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_an_incomplete_head_is_refused_at_the_header_deadline_b1(sent: bytes) -> None:
    """Nothing, half a request line, half a header: 408, or the connection is closed."""
    async with running_edge(fake(), limits=WireLimits(header_s=0.1)) as running, client(running.port) as raw:
        await raw.send(sent)
        said = b""
        async with asyncio.timeout(2):
            said = await raw.reader.read()
        assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


async def test_a_slow_head_does_not_extend_the_deadline_b1() -> None:
    """The deadline applies to the whole head; slow clients do not delay others."""
    async with running_edge(fake(), limits=WireLimits(header_s=0.3)) as running:
        slow = [await RawClient.to(running.port) for _ in range(100)]
        started_at = asyncio.get_running_loop().time()
        for raw in slow:
            await raw.send(b"GET / HTTP/1.1\r\nX: ")

        async def drip() -> None:
            while True:
                for raw in slow:
                    raw.writer.write(b"a")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        async with client(running.port) as quick:
            assert (await quick.ask("GET", "/")).status == 200
        assert all(await asyncio.gather(*(raw.is_closed() for raw in slow)))
        assert asyncio.get_running_loop().time() - started_at < 1.5
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        for raw in slow:
            raw.close()
        await asyncio.sleep(0.02)


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not_b1_b4() -> None:
    """The keep-alive timeout applies between requests only, not while an answer is awaited."""

    async def slow(visit: Visit) -> None:
        await asyncio.sleep(0.4)
        await answer(b'{"done":true}')(visit)

    limits = WireLimits(header_s=0.1, keep_alive_s=0.1)
    async with raw_upstream(slow) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), limits=limits) as running:
            async with client(running.port) as raw:
                assert (await raw.ask("POST", "/api/chat", CHAT)).status == 200
                started_at = asyncio.get_running_loop().time()
                assert await raw.is_closed()
                assert asyncio.get_running_loop().time() - started_at < 0.4


async def test_a_connection_beyond_the_limit_is_refused() -> None:
    """With Ollama's busy body; the others are served further."""
    async with running_edge(fake(), limits=WireLimits(connections=2)) as running:
        first = [await RawClient.to(running.port) for _ in range(2)]
        assert (await first[0].ask("GET", "/")).status == 200
        extra = await RawClient.to(running.port)
        reply = await extra.reply()
        assert (reply.status, reply.json()["error"][:11]) == (503, "server busy")
        assert (await first[1].ask("GET", "/")).status == 200
        for raw in [*first, extra]:
            raw.close()


@pytest.mark.parametrize("flood", [b"X-T: " + b"a" * 200_000, b"X: y\r\n" * 40_000, b"5;x=" + b"a" * 200_000])
async def test_trailers_and_chunk_extensions_are_bounded(flood: bytes) -> None:
    """They count against the header limit; a trailer is not a header."""
    dispatcher = fake()
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        body = b"%x\r\n%b\r\n" % (len(CHAT), CHAT)
        if not flood.startswith(b"5"):
            body += b"0\r\n"
        try:
            await raw.send(post(b"Host: a.local", b"Transfer-Encoding: chunked", body=body))
            for at in range(0, len(flood), 10_000):
                await raw.send(flood[at : at + 10_000])
                await asyncio.sleep(0)
            said = await raw.reader.read()
        except ConnectionError:
            said = b""
        assert said == b"" or said.startswith(b"HTTP/1.1 400 ")
        assert not dispatcher.calls


async def test_a_bad_application_never_splits_a_response_e8() -> None:
    """A header with a line break is not sent; the answer is a plain 500 instead."""

    async def split(_scope: object, _receive: object, send: object) -> None:
        await send(  # type: ignore[operator]
            {"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nSet-Cookie: b")]}
        )

    async with Listener(Asgi(split)) as listener, client(listener.port) as raw:
        await raw.send(request_bytes("GET", "/"))
        reply = await raw.reply()
        assert reply.status == 500
        assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_the_late_body_of_a_pipelined_request_is_read(size: int) -> None:
    """Reading pauses at the second head while the first request is answered, and resumes for the body."""
    body = '{"model":"m","prompt":"%s"}' % ("x" * size)
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            first, second = (
                request_bytes("POST", "/api/generate", text) for text in ('{"model":"m","prompt":"1"}', body)
            )
            await raw.send(first + second[:-5])
            assert (await raw.reply()).status == 200
            await raw.send(second[-5:])
            async with asyncio.timeout(5):
                assert (await raw.reply()).status == 200


@needs_pauses
@pytest.mark.real_time  # the kernel's own timers open a window that was full
async def test_answers_for_a_client_that_does_not_read_do_not_pile_up_a14() -> None:
    """It sends requests without end: the buffers stay small, and serving continues when it reads."""
    async with raw_upstream(answer(b"x" * 200_000)) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port, receive_buffer=4096)
            asked = request_bytes("POST", "/api/generate", '{"model":"m","prompt":"1"}')
            for _ in range(200):
                raw.writer.write(asked)
            await asyncio.sleep(0.3)
            (connection,) = running.listener._shared.connections
            assert connection.transport.get_write_buffer_size() < 1_000_000
            assert len(upstream.requests) < 100
            for _ in range(200):
                assert len((await raw.reply()).body) == 200_000
            raw.close()
