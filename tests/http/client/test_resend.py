"""Requests whose kept connection the upstream closed just as they were sent."""

import asyncio
import errno

import pytest

from router.errors import UpstreamError, UpstreamTimeout
from router.http.client.parser import ConnectionGone
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from tests.http.client.test_connections import read_all, until
from tests.http.raw_upstream import answer, raw_upstream, reset

POST = UpstreamRequest(b"POST", b"/api/chat", (), b'{"model":"m"}', safe_to_resend=True)
GET = UpstreamRequest(b"GET", b"/api/tags")


def closing(how="eof", *, keeps=1, says=b"", after_s=0.0):
    """Answer the first `keeps` requests of a connection, and close it instead of the next answer.

    What is sent by a new connection after that is answered.
    """

    async def script(visit):
        if visit.number <= keeps:
            await answer(b"%d" % visit.upstream.connections)(visit)
            return
        await asyncio.sleep(after_s)
        if says:
            await visit.say(says)
        if how == "reset":
            reset(visit.writer)
        else:
            visit.writer.close()

    return script


async def sent(relay, request, how, connection=None):
    """Send by either way of the relay and return the whole answer."""
    if how == "open":
        return await read_all(await relay.open(request))
    came = asyncio.Event()
    response = relay.open_now(request, came.set, connection)
    assert response is not None
    await came.wait()
    response.raise_error()
    return await read_all(response)


@pytest.mark.parametrize("request_", [GET, POST], ids=["get", "post"])
@pytest.mark.parametrize("way", ["open", "open_now"])
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_request_is_sent_once_more_if_its_kept_connection_was_closed_as_it_came_c1(how, way, request_):
    """By a new connection, as it was; what comes later uses that one."""
    async with raw_upstream(closing(how)) as upstream:
        relay = HttpRelay(upstream.url, pool_size=1)
        assert await sent(relay, request_, "open") == b"1"
        assert await sent(relay, request_, way) == b"2"
        assert len(upstream.requests) == 3
        assert upstream.requests[1] == upstream.requests[2]
        assert (relay.open_connections, relay.idle_connections) == (1, 1)
        await relay.aclose()
        await until(lambda: relay.open_connections == 0)


async def test_a_connection_that_was_opened_and_not_used_yet_is_a_kept_one_c1():
    """It has been idle as well: the upstream may have closed it."""
    async with raw_upstream(closing(keeps=0)) as upstream:
        relay = HttpRelay(upstream.url)
        relay.give_back(await relay.connect())
        with pytest.raises(ConnectionGone):
            await sent(relay, POST, "open_now")
        assert (len(upstream.requests), upstream.connections) == (2, 2)
        await relay.aclose()


@pytest.mark.parametrize("way", ["open", "open_now"])
async def test_what_was_sent_once_more_is_not_sent_a_third_time_c3(way):
    """The second connection is new, and an upstream that drops what comes by one means it."""

    async def script(visit):
        if visit.upstream.requests[0] is visit.upstream.requests[-1]:
            await answer(b"x")(visit)
        else:
            visit.writer.close()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, POST, "open") == b"x"
        with pytest.raises(ConnectionGone):
            await sent(relay, POST, way)
        assert len(upstream.requests) == 3
        await until(lambda: relay.open_connections == 0)


@pytest.mark.parametrize("way", ["open_now", "open"])
async def test_a_request_by_a_new_connection_is_sent_once_c3(way):
    """Whoever has opened it."""
    async with raw_upstream(closing(keeps=0)) as upstream:
        relay = HttpRelay(upstream.url)
        connection = await relay.connect() if way == "open_now" else None
        with pytest.raises(ConnectionGone):
            await sent(relay, POST, way, connection)
        assert len(upstream.requests) == 1
        await relay.aclose()


@pytest.mark.parametrize("says", [b"H", b"HTTP/1.1 200 O", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["h", "part", "100"])
async def test_what_the_upstream_began_to_answer_is_not_sent_again_c1(says):
    """Not for one byte, and not for a provisional answer: it was read."""
    async with raw_upstream(closing(says=says)) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, POST, "open") == b"1"
        with pytest.raises(UpstreamError, match="broke off"):
            await sent(relay, POST, "open_now")
        assert len(upstream.requests) == 2
        await relay.aclose()


async def test_a_request_that_changes_models_is_never_sent_twice_c2():
    """Though the connection was closed as it came."""
    request = UpstreamRequest(b"POST", b"/api/pull", (), b"{}")
    async with raw_upstream(closing()) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, request, "open") == b"1"
        with pytest.raises(ConnectionGone):
            await sent(relay, request, "open_now")
        assert len(upstream.requests) == 2
        await relay.aclose()


async def test_an_upstream_that_is_silent_gets_nothing_twice():
    """After a time that is over it may be at work."""

    async def script(visit):
        if visit.number == 1:
            await answer(b"x")(visit)
        else:
            await visit.gone()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, first_byte_timeout_s=0.1)
        assert await sent(relay, POST, "open") == b"x"
        with pytest.raises(UpstreamTimeout):
            await sent(relay, POST, "open_now")
        assert len(upstream.requests) == 2
        await relay.aclose()


async def test_a_link_that_has_died_gets_nothing_twice():
    """The system gives it up after a while in which the upstream may have read the request."""
    is_over = asyncio.Event()

    async def script(visit):
        if visit.number == 1:
            await answer(b"x")(visit)
        else:
            await is_over.wait()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, POST, "open") == b"x"
        came = asyncio.Event()
        wire = await relay.connect()
        response = relay.open_now(POST, came.set, wire)
        await until(lambda: len(upstream.requests) == 2)
        wire.connection_lost(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))  # as asyncio does
        with pytest.raises(ConnectionGone):
            response.raise_error()
        is_over.set()
        assert len(upstream.requests) == 2
        await relay.aclose()


async def test_an_upstream_that_ends_later_had_taken_the_request():
    """No connection takes longer to be refused than to be opened: it may have died of the request."""
    async with raw_upstream(closing(after_s=0.2)) as upstream:
        relay = HttpRelay(upstream.url, connect_timeout_s=0.1)
        assert await sent(relay, POST, "open") == b"1"
        with pytest.raises(ConnectionGone):
            await sent(relay, POST, "open_now")
        assert len(upstream.requests) == 2
        await relay.aclose()


class Gate:
    """Lets connections through when it is open; stands for a slow network."""

    def __init__(self, monkeypatch):
        self.may_go, self.asked = asyncio.Event(), 0
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def slowly(*arguments, **details):
            self.asked += 1
            await self.may_go.wait()
            return await connect(*arguments, **details)

        monkeypatch.setattr(loop, "create_connection", slowly)


async def test_a_request_given_up_before_it_is_sent_once_more_is_not_sent(monkeypatch):
    """Nobody is told of it, and the connection is for others."""
    async with raw_upstream(closing()) as upstream:
        relay = HttpRelay(upstream.url, pool_size=1)
        assert await sent(relay, POST, "open") == b"1"
        gate, told = Gate(monkeypatch), []
        response = relay.open_now(POST, lambda: told.append(1))
        await until(lambda: gate.asked)
        response.close()
        gate.may_go.set()
        await until(lambda: relay.idle_connections)
        assert (told, len(upstream.requests), relay.open_connections) == ([], 2, 1)
        assert await sent(relay, POST, "open_now") == b"2"
        await relay.aclose()


async def test_a_request_to_be_sent_once_more_ends_with_its_pool(monkeypatch):
    """It is told so, and nothing is left."""
    async with raw_upstream(closing()) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, POST, "open") == b"1"
        gate = Gate(monkeypatch)
        asked = asyncio.create_task(relay.open(POST))
        await until(lambda: gate.asked)
        await relay.aclose()
        with pytest.raises(ConnectionGone):
            await asked
        assert relay.open_connections == 0


async def test_an_upstream_that_is_gone_is_told_by_the_second_attempt():
    """That says more than that the first connection was closed."""
    async with raw_upstream(closing()) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, POST, "open") == b"1"
        relay._connections._address = relay._connections._address._replace(port=1)
        with pytest.raises(UpstreamError, match="cannot connect to"):
            await sent(relay, POST, "open_now")
        assert relay.open_connections == 0


async def test_a_connection_lost_after_its_pool_was_closed_is_not_replaced():
    """Answers under way are read; no connection is opened any more."""
    async with raw_upstream(closing(after_s=0.05)) as upstream:
        relay = HttpRelay(upstream.url)
        assert await sent(relay, POST, "open") == b"1"
        asked = asyncio.create_task(relay.open(POST))
        await until(lambda: len(upstream.requests) == 2)
        await relay.aclose()
        with pytest.raises(ConnectionGone):
            await asked
        assert upstream.connections == 1
        assert relay.open_connections == 0


async def test_a_pool_that_is_full_is_not_exceeded_by_what_is_sent_once_more():
    """Two kept connections are closed as requests come, while a third one waits for one."""
    async with raw_upstream(closing()) as upstream:
        relay, most = HttpRelay(upstream.url, pool_size=2), 0
        await asyncio.gather(*(sent(relay, POST, "open") for _ in range(2)))
        asked = [asyncio.create_task(sent(relay, POST, "open")) for _ in range(3)]
        while not all(task.done() for task in asked):
            most = max(most, relay.open_connections)
            await asyncio.sleep(0)
        for task in asked:
            assert await task
        assert most <= 2
        await relay.aclose()


async def test_an_answer_that_nobody_wants_is_not_asked_for_again_a6():
    """`suppress_cancel`: what nobody waits for is drained, and not sent again when its connection ends."""
    async with raw_upstream(closing(after_s=0.05)) as upstream:
        relay = HttpRelay(upstream.url, suppress_cancel=True)
        assert await sent(relay, POST, "open") == b"1"
        response = relay.open_now(POST, lambda: None)
        await until(lambda: len(upstream.requests) == 2)
        response.close()
        await until(lambda: relay.open_connections == 0)
        assert len(upstream.requests) == 2
        await relay.aclose()
