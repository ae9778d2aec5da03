"""Requests and answers with a repeated head are handled exactly as on a new connection."""

from __future__ import annotations

import asyncio
import random

import pytest

from router.api.settings import EdgeSettings
from router.http.client.pool import HttpRelay
from router.http.server.limits import WireLimits
from router.http.server.protocol import HttpProtocol
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.raw_upstream import Visit, raw_upstream

HEADERS = [("Content-Type", "application/json"), ("User-Agent", "test/1"), ("Accept", "*/*")]


def chat(text: str) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"%b"}],"stream":false}' % text.encode()


def request(text: str, target: str = "/api/chat") -> bytes:
    return request_bytes("POST", target, chat(text), HEADERS)


async def echo(visit: Visit) -> None:
    """Answer with everything received, and with a Date that changes each time, as in Ollama's answers."""
    body = visit.head + visit.body
    date = b"Tue, 24 Nov 2026 18:%02d:%02d GMT" % divmod(visit.number % 3600, 60)
    await visit.say(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nDate: %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (date, len(body), body)
    )


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect the bodies of the requests whose heads were recognized."""
    seen: list[bytes] = []
    original = HttpProtocol._repeated
    monkeypatch.setattr(HttpProtocol, "_repeated", lambda self, *args: (seen.append(args[1]), original(self, *args))[1])
    return seen


async def test_requests_with_a_repeated_head_are_handled_like_the_first(repeats: list[bytes]) -> None:
    """With bodies of all lengths, and one with the headers of another client in between."""
    sent = [request("x" * length) for length in (1, 1, 2, 10, 0, 100, 7)]
    sent.insert(4, request_bytes("POST", "/api/chat", chat("other"), [*HEADERS, ("Traceparent", "00-1")]))
    sent += [request("a", "/api/generate?x=1"), request("b"), request("b", "/v1/chat/completions")]
    async with raw_upstream(echo) as upstream, running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
        async with client(running.port) as raw:
            for data in sent:
                async with client(running.port) as fresh:
                    await fresh.send(data)
                    alone = await fresh.reply()
                await raw.send(data)
                reply = await raw.reply()
                assert (reply.status, reply.body) == (alone.status, alone.body)
                assert reply.headers.keys() == alone.headers.keys()
                assert int(reply.headers["content-length"]) == len(reply.body)
    assert repeats == [chat("x"), chat("xx"), chat("x" * 10), chat("x" * 100), chat("x" * 7)]


async def test_a_body_that_looks_like_a_head_is_not_cached(repeats: list[bytes]) -> None:
    """E1: a pipelined pair whose first body looks like headers; then the same bytes as a longer body."""
    tail = b"x\r\nHost: localhost\r\n\r\n"
    first = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(tail) + tail
    data = first + b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with raw_upstream(echo) as upstream, running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
        async with client(running.port) as raw:
            for _ in range(3):
                await raw.send(data)
                assert [(await raw.reply()).status for _ in range(2)] == [400, 200]
            assert not repeats


async def test_a_shutdown_closes_the_connection_after_a_repeated_head() -> None:
    """Although the cached head was kept alive."""
    hold = asyncio.Event()

    async def script(visit: Visit) -> None:
        if visit.number > 1:
            await hold.wait()
        await echo(visit)

    async with raw_upstream(script) as upstream, running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
        async with client(running.port) as raw:
            await raw.send(request("x"))
            assert "connection" not in (await raw.reply()).headers
            await raw.send(request("y"))
            while len(upstream.requests) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            stopping = asyncio.create_task(running.listener.stop(5.0))
            await asyncio.sleep(0.01)
            hold.set()
            assert (await raw.reply()).headers["connection"] == "close"
            assert await raw.is_closed()
            await stopping


async def test_mutated_requests_are_handled_as_on_a_new_connection() -> None:
    """320 mutated requests, each after a well-formed one and alone: the same status and the same bytes upstream."""
    rng = random.Random(3)
    bits = [
        b"\r\n",
        b"\n",
        b" ",
        b"0",
        b"7",
        b":",
        b"\x00",
        b"Host: b\r\n",
        b"Content-Length: 9\r\n",
        b"\r\n\r\n",
        b"z",
    ]
    limits = WireLimits(header_s=0.15)

    async def asked(raw: RawClient, data: bytes) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(5):
                await raw.send(data)
                reply = await raw.reply()
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        return reply.status, reply.body

    async with raw_upstream(echo) as upstream:
        dispatcher = FakeDispatcher(HttpRelay(upstream.url))
        async with running_edge(dispatcher, EdgeSettings(body_idle_s=0.15), limits) as running:

            async def compare(data: bytes) -> None:
                async with client(running.port) as raw:
                    assert (await asked(raw, request("x")))[0] == 200
                    behind = await asked(raw, data)
                async with client(running.port) as fresh:
                    assert behind == await asked(fresh, data), data

            for _ in range(4):
                cases = []
                for _ in range(80):
                    data = bytearray(request("x" * rng.randrange(20)))
                    for _ in range(rng.randrange(1, 3)):
                        at = rng.randrange(len(data))
                        data[at : at + rng.randrange(3)] = rng.choice(bits)
                    cases.append(bytes(data))
                await asyncio.gather(*map(compare, cases))
