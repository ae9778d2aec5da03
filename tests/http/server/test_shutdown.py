"""Drain and stop: requests under way end normally or with an error, and no new ones are accepted."""

from __future__ import annotations

import asyncio

import pytest

from router.http.client.pool import HttpRelay
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.raw_upstream import STREAM_HEAD, Visit, answer, chunk, raw_upstream

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}]}'


async def test_streams_that_end_in_time_end_normally_d1() -> None:
    """50 streams and a drain in the middle: none is cut, no new connection is accepted, `/readyz` reports draining."""

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD + chunk(b'{"done":false}\n'))
        await asyncio.sleep(0.2)
        await visit.say(chunk(b'{"done":true}\n') + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            async with client(running.port) as raw:
                running.edge.drain()
                reply = await raw.ask("GET", "/readyz")
                assert (reply.status, reply.json()["draining"]) == (503, True)
                port = running.port
                clients = [await RawClient.to(port) for _ in range(50)]
                for each in clients:
                    await each.send(request_bytes("POST", "/api/chat", CHAT))
                replies = [asyncio.create_task(each.reply()) for each in clients]
                await asyncio.sleep(0.1)
                await running.listener.stop(grace_s=5)
                for task in replies:
                    reply = await task
                    assert reply.body == b'{"done":false}\n{"done":true}\n'
                    assert not reply.is_cut
                with pytest.raises(OSError, match=r".*"):
                    await RawClient.to(port)
                assert await raw.is_closed()
                for each in clients:
                    each.close()


@pytest.mark.parametrize("target", ["/api/chat", "/v1/chat/completions"])
async def test_a_stream_that_outlives_the_grace_ends_with_an_error_d2(target: str) -> None:
    """It gets an error line or event and a well-formed end of the body; the upstream is cancelled."""
    is_sse = target.startswith("/v1")
    first = b'data: {"n":1}\n\n' if is_sse else b'{"done":false}\n'

    async def script(visit: Visit) -> None:
        head = STREAM_HEAD.replace(b"application/x-ndjson", b"text/event-stream") if is_sse else STREAM_HEAD
        await visit.say(head + chunk(first))
        visit.upstream.gone_at.append(await visit.gone())

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            await raw.send(request_bytes("POST", target, CHAT[:-1] + ',"stream":true}'))
            task = asyncio.create_task(raw.reply())
            await asyncio.sleep(0.05)
            started_at = asyncio.get_running_loop().time()
            await running.listener.stop(grace_s=0.1)
            assert asyncio.get_running_loop().time() - started_at < 2.0
            reply = await task
            assert not reply.is_cut
            assert reply.body.startswith(first)
            assert b"the router is shutting down" in reply.body[len(first) :]
            assert running.dispatcher.log == ["shutdown"]
            assert running.dispatcher.released[0].error == "the router is shutting down"
            await asyncio.sleep(0.02)
            assert upstream.gone_at


async def test_a_request_without_an_answer_yet_gets_503_d2() -> None:
    """The grace period ended before the first byte of its answer."""

    async def script(visit: Visit) -> None:
        await visit.gone()

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            await asyncio.sleep(0.05)
            await running.listener.stop(grace_s=0.05)
            reply = await raw.reply()
            assert (reply.status, "shutting down" in reply.json()["error"]) == (503, True)
            assert reply.headers["retry-after"] == "1"


async def test_an_answer_during_a_drain_closes_its_connection_d1() -> None:
    """The connection is not kept alive after the request that was under way."""

    async def script(visit: Visit) -> None:
        await asyncio.sleep(0.1)
        await answer(b'{"done":true}')(visit)

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            await asyncio.sleep(0.03)
            stopping = asyncio.create_task(running.listener.stop(grace_s=2))
            reply = await raw.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            await stopping


async def test_a_request_on_its_way_when_the_drain_begins_is_answered_d1_d3() -> None:
    """On connections that are kept alive, new, or within a head: the answer is the last one, and nobody else waits."""
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as kept:
            assert (await kept.ask("GET", "/")).status == 200
            new, within = await RawClient.to(running.port), await RawClient.to(running.port)
            await within.send(b"GET / HTTP/1.1\r\n")
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(running.listener.stop(grace_s=600))
            await asyncio.sleep(0.05)
            await kept.send(request_bytes("POST", "/api/chat", CHAT))
            await new.send(request_bytes("GET", "/"))
            await within.send(b"Host: localhost\r\n\r\n")
            for raw in (kept, new, within):
                reply = await raw.reply()
                assert (reply.status, reply.headers["connection"]) == (200, "close")
                assert await raw.is_closed()
            await stopping
            new.close()
            within.close()


async def test_a_client_that_asks_nothing_more_does_not_keep_a_drain_waiting() -> None:
    """Its connection is closed after a moment, also one that never sends the rest of a head."""
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as kept:
            assert (await kept.ask("GET", "/")).status == 200
            async with client(running.port) as within, asyncio.timeout(60):
                await within.send(b"GET / HTTP/1.1\r\n")
                await running.listener.stop(grace_s=600)
                assert await kept.is_closed()
                assert await within.is_closed()


async def test_a_connection_accepted_as_the_drain_begins_is_served_d3() -> None:
    """It was accepted before, and is not refused."""
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            connecting = asyncio.create_task(RawClient.to(running.port))
            running.listener._shared.drain()
            raw = await connecting
            reply = await raw.ask("GET", "/")
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            raw.close()
