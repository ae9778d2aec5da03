"""Connections to the upstream that are closed, given back or refused at the wrong moment."""

import asyncio
from contextlib import suppress

import pytest

from router.errors import UpstreamError
from router.http.client.parser import MAX_HEADER_BYTES, ConnectionGone
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from tests.http.raw_upstream import answer, raw_upstream, reset

POST = UpstreamRequest(b"POST", b"/api/chat", (), b"{}")
GET = UpstreamRequest(b"GET", b"/")


async def read_all(response):
    parts = []
    while part := await response.read():
        parts.append(part)
    return b"".join(parts)


def to(upstream, **more):
    return HttpRelay(upstream.url, **more)


async def until(condition):
    """Wait for something that the network brings."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def begun(relay, request=POST):
    """Send on a free connection; the answer once it has a head or will have none."""
    came = asyncio.Event()
    response = relay.open_now(request, came.set)
    assert response is not None
    await came.wait()
    return response


async def test_a_request_is_sent_now_only_on_a_free_connection():
    """One that was awaited is as good."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream)
        assert relay.open_now(POST, lambda: None) is None
        wire = await relay.connect()
        came = asyncio.Event()
        response = relay.open_now(POST, came.set, wire)
        await came.wait()
        assert await read_all(response) == b"x"
        assert await read_all(await begun(relay)) == b"x"
        assert upstream.connections == 1
        await relay.aclose()


async def test_a_connection_that_was_closed_meanwhile_is_not_used():
    """The next free one is; where there is none, nothing is sent."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream)
        gone, other = await relay.connect(), await relay.connect()
        relay.give_back(other)
        gone.transport.abort()
        came = asyncio.Event()
        response = relay.open_now(POST, came.set, gone)
        await came.wait()
        assert await read_all(response) == b"x"
        other.transport.abort()
        assert relay.open_now(POST, lambda: None) is None
        await until(lambda: relay.open_connections == 0)
        await relay.aclose()


async def test_a_connection_whose_socket_is_gone_is_replaced_though_its_protocol_does_not_know():
    """A transport may refuse a write before it reports the end."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream)
        wire, other = await relay.connect(), await relay.connect()
        relay.give_back(other)

        class Refusing:
            """Stands for a transport that has noticed the end ahead of its protocol."""

            def __init__(self, transport):
                self._transport = transport

            def __getattr__(self, name):
                return getattr(self._transport, name)

            def write(self, _):
                raise RuntimeError("unable to perform operation; the handler is closed")

        wire.transport = Refusing(wire.transport)
        came = asyncio.Event()
        response = relay.open_now(POST, came.set, wire)
        await came.wait()
        assert await read_all(response) == b"x"
        await relay.aclose()


async def test_what_is_given_back_closed_or_after_the_end_is_not_kept():
    """No connection is left open."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream)
        closed, late = await relay.connect(), await relay.connect()
        closed.transport.abort()
        relay.give_back(closed)
        assert relay.idle_connections == 0
        await relay.aclose()
        relay.give_back(late)
        assert relay.idle_connections == 0
        await until(lambda: relay.open_connections == 0)


async def test_a_connection_handed_to_a_waiter_that_leaves_is_handed_on():
    """Whether it is a connection or the room for one; a closed one is only room."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream, pool_size=1)
        for give in ("back", "closed"):
            wire = await relay.connect()
            first, second = (asyncio.create_task(relay.connect()) for _ in range(2))
            await asyncio.sleep(0)
            relay.give_back(wire)
            if give == "closed":
                wire.transport.abort()
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            if give == "closed":
                await until(lambda closed=wire: closed.is_closed)
            got = await asyncio.wait_for(second, 30)
            assert (got is wire) is (give == "back")
            relay.give_back(got)
        await relay.aclose()


async def test_a_pool_that_is_closed_has_no_connection_for_those_that_wait_for_one():
    """They are told at once, though one is in use, or is being opened; so are those that ask later."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream, pool_size=2)
        in_use = await relay.connect()
        waiting = [asyncio.create_task(relay.connect()) for _ in range(2)]
        await asyncio.sleep(0)
        await relay.aclose()
        async with asyncio.timeout(5):
            for task in waiting:
                with pytest.raises(ConnectionGone, match="are closed"):
                    await task
            with pytest.raises(ConnectionGone, match="are closed"):
                await relay.open(POST)
        relay.give_back(in_use)
        await until(lambda: relay.open_connections == 0)


async def test_an_upstream_that_closes_at_once_is_no_connection():
    """Nothing was sent, so another one may be tried."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream)
        loop = asyncio.get_running_loop()
        create = loop.create_connection

        async def closing(factory, *args, **more):
            transport, wire = await create(factory, *args, **more)
            wire.abort()
            return transport, wire

        loop.create_connection = closing
        try:
            with pytest.raises(ConnectionGone, match="closed the connection at once"):
                await relay.connect()
        finally:
            loop.create_connection = create
        assert relay.open_connections == 0
        await relay.aclose()


async def test_a_streamed_body_is_never_sent_twice():
    """Even where a resend was allowed: it is used up."""

    async def body():
        yield b"part"

    async def script(visit):
        if visit.upstream.connections == 1 and visit.number == 2:
            reset(visit.writer)
        else:
            await answer(b"x")(visit)

    async with raw_upstream(script) as upstream:
        relay = to(upstream)
        assert await read_all(await relay.open(POST)) == b"x"
        with pytest.raises(ConnectionGone):
            await relay.open(UpstreamRequest(b"POST", b"/", (), body(), safe_to_resend=True))
        assert len(upstream.requests) == 2
        await relay.aclose()


async def test_empty_pieces_of_a_streamed_body_do_not_end_it():
    """In chunked framing an empty chunk would."""

    async def body():
        for piece in (b"a", b"", b"b"):
            yield piece

    async with raw_upstream(answer(b"x")) as upstream:
        relay = to(upstream)
        assert await read_all(await relay.open(UpstreamRequest(b"POST", b"/", (), body()))) == b"x"
        assert upstream.requests[0][1] == b"ab"
        await relay.aclose()


async def test_a_body_is_not_streamed_on_after_its_answer_is_complete():
    """The upstream has refused it; the connection is not used again."""
    may_end = asyncio.Event()

    async def body():
        yield b"part"
        await may_end.wait()
        yield b"rest"

    async with raw_upstream(answer(b"no", status=b"413 Too Large"), reads_bodies=False) as upstream:
        relay = to(upstream)
        response = await relay.open(UpstreamRequest(b"POST", b"/", (), body()))
        assert (response.status, await read_all(response)) == (413, b"no")
        may_end.set()
        await until(lambda: relay.open_connections == 0)
        await relay.aclose()


async def test_bytes_that_nobody_asked_for_close_an_unused_connection():
    """They must never be taken for the answer of the next request."""

    async def script(visit):
        await answer(b"x")(visit)
        await asyncio.sleep(0.05)
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async with raw_upstream(script) as upstream:
        relay = to(upstream)
        assert await read_all(await relay.open(GET)) == b"x"
        await until(lambda: relay.open_connections == 0)
        assert await read_all(await relay.open(GET)) == b"x"
        await relay.aclose()


async def test_a_head_without_end_is_cut_off():
    """Long before memory is."""

    async def script(visit):
        await visit.say(b"HTTP/1.1 200 OK\r\n")
        with suppress(ConnectionError):
            for _ in range(4 * MAX_HEADER_BYTES // 1024):
                await visit.say(b"x: " + b"a" * 1020 + b"\r\n")

    async with raw_upstream(script) as upstream:
        relay = to(upstream)
        with pytest.raises(UpstreamError, match="too many headers"):
            await relay.open(GET)
        await relay.aclose()


async def test_an_upload_that_waits_for_the_upstream_ends_with_the_connection():
    """It does not wait for a connection that is lost."""
    ended = asyncio.Event()

    async def body():
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            ended.set()

    async def script(visit):
        await asyncio.sleep(0.1)
        reset(visit.writer)

    async with raw_upstream(script, reads_bodies=False) as upstream:
        relay = to(upstream)
        with pytest.raises(UpstreamError):
            await relay.open(UpstreamRequest(b"POST", b"/", (), body()))
        await asyncio.wait_for(ended.wait(), 30)
        assert relay.open_connections == 0
        await relay.aclose()
