"""The bodies of all requests together: how much of them is held, and that each way out gives it back."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_network

import pytest
import zstandard

from router.api.budget import BodyBudget, Holding
from router.api.settings import EdgeSettings
from router.errors import BodyTooLarge, Busy
from router.http.client.response import UpstreamResponse
from router.http.server.proxies import Proxies
from tests.fakes import FakeDispatcher, RawClient, RunningEdge, client, request_bytes, running_edge
from tests.http.scripted_relay import ScriptedRelay

MIB = 1 << 20
SETTINGS = EdgeSettings(buffered_bytes=3 * MIB, body_bytes=8 * MIB, body_idle_s=0.5)
BODY = json.dumps({"model": "m", "prompt": "x" * 2 * MIB}).encode()


def edge() -> FakeDispatcher:
    json_type = ((b"content-type", b"application/json"),)
    return FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, json_type, b'{"done":true}')))


def held(running: RunningEdge) -> int:
    return running.edge._bodies.held_bytes


async def until_held(running: RunningEdge, size: int) -> None:
    async with asyncio.timeout(5):
        while held(running) < size:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_a_budget_counts_and_refuses() -> None:
    """What is given back is there again; what never fits is too large."""
    budget = BodyBudget(10)
    first, second = Holding(budget, "a"), Holding(budget, "b")
    first.claim(6)
    with pytest.raises(Busy, match="all bodies"):
        second.claim(5)
    with pytest.raises(BodyTooLarge):
        first.claim(5)
    first.claim(4)
    for one in (first, first, second):
        one.release()
    assert budget.held_bytes == 0
    second.claim(10)


def test_an_address_with_several_bodies_leaves_a_part_to_others() -> None:
    """One body may have all of it."""
    budget = BodyBudget(80)
    first, second, other = (Holding(budget, address) for address in "aab")
    first.claim(60)
    second.claim(10)
    with pytest.raises(Busy):
        second.claim(1)
    other.claim(10)
    assert budget.held_bytes == 80


async def test_a_client_that_stalls_with_all_of_the_budget_makes_room_for_another_one() -> None:
    """Its youngest body ends with a 503; one that is complete, and what is no more than a fair part, stays."""
    content = json.dumps({"model": "m", "prompt": "x" * MIB}).encode()
    settings = EdgeSettings(buffered_bytes=4 * MIB, body_idle_s=60, proxies=Proxies([ip_network("127.0.0.1/32")]))
    async with running_edge(edge(), settings) as running, asyncio.timeout(30):
        raws = [await RawClient.to(running.port) for _ in range(3)]
        for number, raw in enumerate(raws):
            await raw.send(request_bytes("POST", "/api/generate", content)[:-1])
            await until_held(running, (number + 1) * (len(content) - 1))
        async with client(running.port) as other:
            for _ in range(2):
                reply = await other.ask("POST", "/api/generate", content, [("X-Forwarded-For", "192.0.2.1")])
                assert reply.status == 200
        assert (await raws[2].reply()).status == 503
        for raw in raws[:2]:
            await raw.send(content[-1:])
            assert (await raw.reply()).status == 200
        assert held(running) == 0
        for raw in raws:
            raw.close()


async def test_bodies_beyond_the_budget_are_refused_while_others_are_held() -> None:
    """With a Retry-After; small requests are served meanwhile."""
    async with running_edge(edge(), SETTINGS) as running, client(running.port) as other:
        raws = [await RawClient.to(running.port) for _ in range(3)]
        await raws[0].send(request_bytes("POST", "/api/generate", BODY)[:-1])
        await until_held(running, len(BODY) - 1)
        reply = await other.ask("POST", "/api/generate", BODY)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert "for all bodies" in reply.json()["error"]
        async with client(running.port) as small:
            assert (await small.ask("POST", "/api/generate", '{"model":"m","prompt":"x"}')).status == 200
        await raws[0].send(BODY[-1:])
        assert (await raws[0].reply()).status == 200
        assert held(running) == 0
        async with client(running.port) as again:
            assert (await again.ask("POST", "/api/generate", BODY)).status == 200
        for raw in raws:
            raw.close()


async def test_a_body_beyond_all_of_the_budget_is_too_large() -> None:
    """To try again would not help."""
    async with running_edge(edge(), SETTINGS) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/api/generate", BODY + b" " * 2 * MIB)
        assert reply.status == 413
        assert held(running) == 0


@pytest.mark.parametrize("how", ["leaves", "stalls", "breaks off"])
async def test_a_body_that_does_not_end_gives_back_what_it_took(how: str) -> None:
    """However it is given up."""
    async with running_edge(edge(), SETTINGS) as running:
        raw = await RawClient.to(running.port)
        head = b"POST /api/generate HTTP/1.1\r\nHost: x.local\r\nTransfer-Encoding: chunked\r\n\r\n"
        await raw.send(head + b"%x\r\n%b\r\n" % (len(BODY), BODY))
        await until_held(running, len(BODY))
        if how == "leaves":
            raw.reset()
        elif how == "breaks off":
            await raw.send(b"zz\r\n")
        async with asyncio.timeout(5):
            while held(running):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        raw.close()


async def test_what_a_compressed_body_becomes_is_counted() -> None:
    """And given back."""
    packed = zstandard.compress(json.dumps({"model": "m", "messages": [], "x": "y" * 4 * MIB}).encode())
    async with running_edge(edge(), SETTINGS) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/v1/chat/completions", packed, [("Content-Encoding", "zstd")])
        assert reply.status == 413
        assert held(running) == 0


async def test_lists_that_are_held_count_as_bodies() -> None:
    """They may be as large, and any number of clients may ask for them at once: also what is made of them counts."""
    answer = json.dumps({"models": [{"name": "m", "size": 1, "pad": "x" * (MIB + MIB // 4)}]}).encode()
    kind = ((b"content-type", b"application/json"),)
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, kind, answer)))
    async with running_edge(dispatcher, SETTINGS) as running, client(running.port) as other:
        assert (await other.ask("GET", "/api/tags")).status == 200
        assert held(running) == 0
        raw = await RawClient.to(running.port)
        await raw.send(request_bytes("POST", "/api/generate", BODY)[:-1])
        await until_held(running, len(BODY) - 1)
        reply = await other.ask("GET", "/api/tags")
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        await raw.send(BODY[-1:])
        assert (await raw.reply()).status == 200
        assert (await other.ask("GET", "/api/tags")).status == 200
        assert held(running) == 0
        raw.close()


async def test_a_list_beyond_all_of_the_budget_is_not_the_clients_fault() -> None:
    """It is refused as one that has no room."""
    answer = json.dumps({"models": [{"name": "m", "pad": "x" * 4 * MIB}]}).encode()
    kind = ((b"content-type", b"application/json"),)
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, kind, answer)))
    async with running_edge(dispatcher, SETTINGS) as running, client(running.port) as other:
        assert (await other.ask("GET", "/api/tags")).status == 503
        assert held(running) == 0
