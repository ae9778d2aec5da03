"""Mutated bodies and heads: whatever arrives, there is no 5xx, no traceback and no second answer (J1)."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from router.core.ollama.routes import ROUTES
from router.http.client.response import UpstreamResponse
from router.http.server.limits import WireLimits
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.scripted_relay import ScriptedRelay

SEEDS = (
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false,"options":{"num_ctx":4096}}',
    b'{"model":"m","prompt":"x","keep_alive":"5m","images":["AAAA"],"format":{"type":"object"}}',
    b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}',
    b'{"MODEL":"m","Model":"n","name":"","source":"a","destination":"b","from":"c","input":["x",1,null]}',
    b"null",
    b"[]",
    b"\xef\xbb\xbf{}",
    b'{"model":1e999,"n":NaN,"s":"\xff\xfe\\ud800"}',
    b"[" * 5000,
    b'{"a":' * 5000,
)
JSON = ((b"content-type", b"application/json"),)


def mutated(rng: random.Random, seed: bytes) -> bytes:
    """Return `seed` with a few bytes changed, removed, repeated or inserted."""
    body = bytearray(seed)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(body) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(body):
            body[at] = rng.randrange(256)
        elif how == 1:
            del body[at : at + rng.randrange(1, 9)]
        elif how == 2:
            body[at:at] = body[at : at + rng.randrange(1, 40)]
        else:
            body[at:at] = rng.choice([b'"', b"{", b"}", b"\\", b"\x00", b"\xf0\x9f", b"1e9999", b'"model":"x",', b" "])
    return bytes(body)


def dispatcher() -> FakeDispatcher:
    return FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, JSON, b'{"done":true}')))


async def test_no_body_causes_a_server_error_j1(caplog: pytest.LogCaptureFixture) -> None:
    """2,500 mutated bodies to all routes with a body: 2xx or 4xx, one answer each, no traceback in the log."""
    rng = random.Random(11)
    routes = [route for route in ROUTES if route.method in ("POST", "DELETE") and ":" not in route.pattern]
    caplog.set_level(logging.WARNING)
    async with running_edge(dispatcher()) as running, client(running.port) as raw:
        for number in range(2500):
            route = routes[number % len(routes)]
            body = mutated(rng, rng.choice(SEEDS))
            reply = await raw.ask(route.method, route.pattern, body)
            assert reply.status < 500, (route.pattern, body, reply.body)
    assert not [record for record in caplog.records if record.exc_info]


async def test_no_head_gets_two_answers_or_stops_the_server_j1() -> None:
    """600 mutated requests, each on its own connection: no more answers than requests, and the server still works."""
    rng = random.Random(12)
    seed = request_bytes("POST", "/api/chat", SEEDS[0], [("Accept", "*/*"), ("Expect", "x"), ("TE", "trailers")])
    async with running_edge(dispatcher(), limits=WireLimits(header_s=0.2)) as running:

        async def one(data: bytes) -> bytes:
            raw = await RawClient.to(running.port)
            try:
                raw.writer.write(data)
                raw.writer.write_eof()
                async with asyncio.timeout(5):
                    return await raw.reader.read()
            except ConnectionError:
                return b""
            finally:
                raw.close()

        for _ in range(12):
            answers = await asyncio.gather(*(one(mutated(rng, seed)) for _ in range(50)))
            assert all(answer.count(b"HTTP/1.1 ") - answer.count(b" 100 Continue") <= 2 for answer in answers)
            assert not any(b"HTTP/1.1 500" in answer or b"HTTP/1.1 502" in answer for answer in answers)
        async with client(running.port) as raw:
            assert (await raw.ask("POST", "/api/chat", SEEDS[0])).status == 200
