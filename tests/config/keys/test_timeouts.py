"""`timeouts` towards clients."""

import asyncio
import json
import socket
import struct

import pytest

from tests.config.keys.play import SMALL, compare_small, connect, hello, seen
from tests.fakes import RawClient, request_bytes

HEAD = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"


async def until_closed(raw):
    """The seconds until the router closes the connection, and the bytes that it has sent before."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    received = await raw.reader.read()
    raw.close()
    return loop.time() - started_s, received


def about(*seconds):
    """Deadlines are swept once a second, so each may pass by up to one."""
    return [pytest.approx(one + 0.5, abs=0.6) for one in seconds]


@pytest.mark.key("timeouts.header_s")
def test_a_request_whose_head_does_not_end_within_header_s_is_refused():
    """Half a head."""

    async def story(one):
        raw = await connect(one.router.url)
        await raw.send(b"GET /api/version HTTP/1.1\r\nHost: local")
        took_s, received = await until_closed(raw)
        assert received.startswith(b"HTTP/1.1 408 ")
        return took_s

    assert compare_small(story, "timeouts.header_s", [1, 4]) == about(1, 4)


@pytest.mark.key("timeouts.keep_alive_s")
def test_an_idle_connection_is_closed_after_keep_alive_s():
    """Once its request was answered."""

    async def story(one):
        raw = await connect(one.router.url)
        assert (await raw.ask("GET", "/api/version")).status == 200
        return (await until_closed(raw))[0]

    assert compare_small(story, "timeouts.keep_alive_s", [1, 4]) == about(1, 4)


@pytest.mark.key("timeouts.body_idle_s")
def test_a_body_that_pauses_for_body_idle_s_is_refused():
    """Ten bytes of a hundred."""

    async def story(one):
        raw = await connect(one.router.url)
        await raw.send(HEAD + b"x" * 10)
        took_s, received = await until_closed(raw)
        assert received.startswith(b"HTTP/1.1 408 ")
        return took_s

    assert compare_small(story, "timeouts.body_idle_s", [1, 4]) == about(1, 4)


@pytest.mark.key("timeouts.body_total_s")
def test_a_body_that_takes_body_total_s_is_refused_though_it_never_pauses():
    """A byte in half a second."""

    async def story(one):
        raw = await connect(one.router.url)
        await raw.send(HEAD)

        async def drip():
            while True:
                await raw.send(b"x")
                await asyncio.sleep(0.5)

        dripping = asyncio.create_task(drip())
        took_s, received = await until_closed(raw)
        dripping.cancel()
        assert received.startswith(b"HTTP/1.1 408 ")
        return took_s

    assert compare_small(story, "timeouts.body_total_s", [1, 4]) == about(1, 4)


@pytest.mark.key("timeouts.write_idle_s")
def test_a_client_that_takes_nothing_for_write_idle_s_is_dropped():
    """It reads nothing of nine megabytes; Ollama is cut off with it."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        one.sim.faults.add("huge_line", route="/api/generate", size=9_000_000)
        raw = await RawClient.to(int(one.router.url.rpartition(":")[2]), receive_buffer=4096)
        sock = raw.writer.get_extra_info("socket")
        raw.writer.transport.pause_reading()
        await raw.send(request_bytes("POST", "/api/generate", json.dumps(hello(SMALL, tokens=1000))))
        started_s = asyncio.get_running_loop().time()
        await asyncio.sleep(8)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.writer.transport.abort()
        return seen(one, "/api/generate")[-1].closed_at_s - started_s

    assert compare_small(story, "timeouts.write_idle_s", [1, 4]) == about(1, 4)
