"""Clients that leave while nothing is read from them, and clients that close only their sending half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamResponse
from router.http.deadlines import Deadlines
from router.http.server.cycle import Cycle
from router.http.server.departures import PROBES, Departure, probe_of, state_of
from router.http.server.heads import Head
from tests.fakes import FakeDispatcher, RawClient, RunningEdge, request_bytes, running_edge
from tests.http.raw_upstream import STREAM_HEAD, RawUpstream, Script, Visit, answer, chunk, raw_upstream
from tests.http.scripted_relay import ScriptedRelay

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}'
ASKED = request_bytes("POST", "/api/chat", CHAT)
VERSION = request_bytes("GET", "/api/version")
DONE = b'{"done":true}\n'


async def silence(visit: Visit) -> None:
    visit.upstream.gone_at.append(await visit.gone())


async def half_a_stream(visit: Visit) -> None:
    await visit.say(STREAM_HEAD + chunk(b'{"a":1}\n'))
    visit.upstream.gone_at.append(await visit.gone())


async def slow(visit: Visit) -> None:
    """Answer after longer than a client is probed quickly."""
    await asyncio.sleep(3)
    await answer(DONE)(visit)


async def slow_stream(visit: Visit) -> None:
    await visit.say(STREAM_HEAD + chunk(b'{"a":1}\n'))
    await asyncio.sleep(3)
    await visit.say(chunk(DONE) + b"0\r\n\r\n")


@asynccontextmanager
async def edge_to(script: Script) -> AsyncIterator[tuple[RawUpstream, RunningEdge]]:
    async with raw_upstream(script) as upstream, running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
        yield upstream, running


async def until_asked(upstream: RawUpstream) -> None:
    while not upstream.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("script", [silence, half_a_stream])
@pytest.mark.parametrize("behind", [ASKED, VERSION * 3, ASKED[:-5], b"GET /api/ve"])
async def test_a_client_that_leaves_behind_a_further_request_is_noticed_a1_a2(
    script: Script, behind: bytes, how: str
) -> None:
    """Nothing is read from it meanwhile; the upstream is cancelled within a second."""
    async with edge_to(script) as (upstream, running):
        raw = await RawClient.to(running.port)
        await raw.send(ASKED + behind)
        await until_asked(upstream)
        await asyncio.sleep(0.3)
        left_s = asyncio.get_running_loop().time()
        if how == "fin":
            raw.close()
        else:
            raw.reset()
        async with asyncio.timeout(20):
            while not upstream.gone_at:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert upstream.gone_at[0] - left_s <= 1.0
        assert len(upstream.requests) == 1
        while running.listener.open_connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_in_a_body_that_is_not_read_on_is_noticed_a3() -> None:
    """The upstream takes nothing of an upload, so that the router reads no more of it."""

    async def takes_nothing(visit: Visit) -> None:
        visit.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(1000)

    async with raw_upstream(takes_nothing, reads_bodies=False) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            head = b"POST /api/blobs/sha256:%b HTTP/1.1\r\nHost: x.local\r\nContent-Length: 99999999\r\n\r\n" % (
                b"0" * 64
            )
            raw.writer.write(head + bytes(40 << 20))
            await until_asked(upstream)
            await asyncio.sleep(1)
            raw.reset()
            async with asyncio.timeout(2):
                while running.listener.open_connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("script", [answer(DONE), slow, slow_stream])
async def test_a_client_that_closes_its_sending_half_gets_its_answer(script: Script) -> None:
    """Whole, by its own framing, and the connection ends after it."""
    async with edge_to(script) as (_, running):
        raw = await RawClient.to(running.port)
        await raw.send(ASKED)
        raw.writer.write_eof()
        status, headers = await raw.head()
        while status == 100:
            status, headers = await raw.head()
        if headers.get("transfer-encoding") == "chunked":
            body, is_cut = await raw._chunks()
            assert (status, body, is_cut) == (200, b'{"a":1}\n' + DONE, False)
        else:
            assert await raw.reader.readexactly(len(DONE)) == DONE
        assert headers["connection"] == "close" or script is slow_stream
        assert await raw.is_closed()
        assert running.dispatcher.released[-1].outcome == "completed"
        raw.close()


async def test_all_requests_in_front_of_the_end_are_answered_and_a_torn_one_is_not() -> None:
    """In their order."""
    async with edge_to(slow) as (upstream, running):
        raw = await RawClient.to(running.port)
        await raw.send(VERSION + ASKED + VERSION + ASKED[:-7])
        raw.writer.write_eof()
        said = await raw.reader.read()
        assert said.count(b"HTTP/1.1 200 OK") == 3
        assert said.count(b"HTTP/1.1 ") - said.count(b"HTTP/1.1 100 Continue\r\n\r\n") == 3
        assert len(upstream.requests) == 1
        raw.close()


async def test_a_client_of_http_1_0_gets_what_is_ready_at_once() -> None:
    """It cannot be probed: what takes longer is given up, as by Ollama."""
    old = b"GET /api/version HTTP/1.0\r\n\r\n"
    async with edge_to(silence) as (upstream, running):
        raw = await RawClient.to(running.port)
        await raw.send(old)
        raw.writer.write_eof()
        assert (await raw.reply()).json() == {"version": "0.33.0"}
        raw.close()
        raw = await RawClient.to(running.port)
        await raw.send(ASKED.replace(b"HTTP/1.1", b"HTTP/1.0"))
        raw.writer.write_eof()
        assert await raw.reader.read() == b""
        async with asyncio.timeout(2):
            while not upstream.gone_at:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        raw.close()


async def test_half_a_request_is_nobodys() -> None:
    """Its client cannot complete it any more."""
    async with edge_to(silence) as (_, running):
        for said in (b"", ASKED[:30], ASKED[:-3]):
            raw = await RawClient.to(running.port)
            await raw.send(said)
            raw.writer.write_eof()
            assert await raw.is_closed()
            raw.close()
        await asyncio.sleep(0.1)
        assert running.listener.open_connections == 0


async def test_probes_have_an_end() -> None:
    """A client that waits for long gets a few; and it is noticed when it leaves after all."""
    async with edge_to(silence) as (upstream, running):
        raw = await RawClient.to(running.port)
        await raw.send(ASKED)
        raw.writer.write_eof()
        await until_asked(upstream)
        await asyncio.sleep(300)
        assert running.listener.open_connections == 1
        raw.reset()
        await asyncio.sleep(1)
        assert running.listener.open_connections == 0


async def test_the_probes_of_an_hour_are_few() -> None:
    """They come at growing intervals."""
    watched = Watched()
    departure = Departure(Deadlines())
    departure.begin(watched)  # type: ignore[arg-type]
    while watched.loop.now_s < 3600:
        departure.expire()
        watched.loop.now_s = departure.deadline
        assert watched.said.count(b"100 Continue") <= 4 + watched.loop.now_s
    assert watched.said.count(b"100 Continue") == PROBES
    departure.end()


class Watched:
    """A connection whose client has closed its sending half."""

    is_half_closed = True

    class Loop:
        now_s = 0.0

        def time(self) -> float:
            return self.now_s

    def __init__(self) -> None:
        self.loop, self.transport, self.said = self.Loop(), self, b""
        self.queue = [Cycle(self, Head("GET", b"/", b"/", [], {}))]  # type: ignore[arg-type]

    def get_extra_info(self, _name: str) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.said += data


async def test_a_connection_that_is_no_socket_has_no_state() -> None:
    """Then only writing tells."""
    assert state_of(asyncio.Transport()) is None


async def test_there_is_no_probe_within_an_answer_of_known_length() -> None:
    """Any byte would be a part of it."""
    held = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + bytes(6 << 20))
        await held.wait()

    async with edge_to(script) as (_, running):
        raw = await RawClient.to(running.port)
        await raw.send(ASKED)
        await raw.head()
        await raw.reader.readexactly(6 << 20)
        (connection,) = running.listener._shared.connections
        assert probe_of(connection.queue[0]) is None
        held.set()
        raw.close()


async def test_an_answer_of_the_router_itself_is_not_lost() -> None:
    """As by Ollama, whose handlers do not look whether the client has closed its half."""
    relay = ScriptedRelay(lambda _: UpstreamResponse.of(200, ((b"content-type", b"application/json"),), b"{}"))
    async with running_edge(FakeDispatcher(relay)) as running:
        for asked in (VERSION, request_bytes("GET", "/api/tags"), request_bytes("POST", "/api/show", '{"model":"m"}')):
            raw = await RawClient.to(running.port)
            raw.writer.write(asked)
            raw.writer.write_eof()
            assert b"HTTP/1.1 200 OK" in await raw.reader.read()
            raw.close()


async def test_a_connection_that_is_not_watched_is_not_gone() -> None:
    """A look that was due as the watch ended does nothing."""
    departure = Departure(Deadlines())
    departure.expire()
    assert (departure.is_gone(), departure.deadline) == (False, 0.0)
