"""`timeouts` towards Ollama, and what becomes of an answer whose client has left."""

import asyncio
import json
import os
import socket
from contextlib import contextmanager, suppress

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.server import SimConfig, running_simulator
from tests.config.keys.play import ALONE, MIDDLE, SMALL, compare_small, connect, get, hello, in_front_of, seen, send
from tests.fakes import request_bytes


def about(*seconds):
    """Deadlines are swept once a second, so each may pass by up to one."""
    return [pytest.approx(one + 0.5, abs=0.6) for one in seconds]


@contextmanager
def hole():
    """The address of an upstream that takes no connection: its queue is full, so the system ignores further ones."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    filling = [socket.socket() for _ in range(3)]
    for sock in filling:
        sock.setblocking(False)
        sock.connect_ex(listening.getsockname())
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        for sock in (*filling, listening):
            sock.close()


def given_up(connect_s, method, target, body=None):
    """How long a request takes that cannot be connected."""

    async def run(url):
        async with in_front_of(url, {"timeouts.connect_s": connect_s}) as router:
            started_s = asyncio.get_running_loop().time()
            assert (await send(router.url, method, target, body)).status in (502, 504)
            return asyncio.get_running_loop().time() - started_s

    with hole() as url:
        return run_virtual(run(url))


@pytest.mark.key("timeouts.connect_s")
def test_an_upstream_that_takes_no_connection_is_given_up_after_connect_s():
    """A request that is passed on."""
    assert [given_up(connect_s, "GET", "/api/tags") for connect_s in (1, 5)] == about(1, 5)


@pytest.mark.key("timeouts.link_s")
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
def test_the_system_breaks_off_connections_to_a_machine_that_acknowledges_nothing_for_link_s():
    """Those of requests and those of the router's own; tests/e2e/test_two_machines.py pulls the cable out."""

    async def silences_ms(link_s):
        async with running_simulator(SimConfig(models=(SMALL,))) as sim:
            async with in_front_of(sim.url, {"timeouts.link_s": link_s}) as router:
                assert (await send(router.url, "POST", "/api/generate", hello(SMALL))).status == 200
                return set(options_to(sim.url, socket.TCP_USER_TIMEOUT))

    assert [run_virtual(silences_ms(link_s)) for link_s in (3, 40)] == [{3000}, {40000}]


def options_to(url, option):
    """What this option is on each connection of this process to `url`; there are some."""
    port, found = int(url.rpartition(":")[2]), []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                found.append(sock.getsockopt(socket.IPPROTO_TCP, option))
    assert len(found) >= 2
    return found


@pytest.mark.key("timeouts.connect_s")
def test_the_routers_own_requests_may_take_connect_s_to_connect_as_well():
    """They come before the answer to a request that needs a model."""
    assert [given_up(connect_s, "POST", "/api/generate", hello(SMALL)) for connect_s in (1, 5)] == about(1, 5)


async def asked(one):
    """A request to a model that is loaded: when its answer ended, its status, and its last line."""
    reply = await one.ask(hello(SMALL, tokens=50))
    return reply.took_s, reply.status, reply.error


@pytest.mark.key("timeouts.first_byte_s")
def test_an_answer_that_does_not_begin_within_first_byte_s_is_given_up():
    """Ollama takes the request and says nothing."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        one.sim.faults.add("slow", route="/api/generate", delay_s=100.0)
        took_s, status, error = await asked(one)
        assert status == 504
        assert error
        return took_s

    assert compare_small(story, "timeouts.first_byte_s", [1, 4]) == about(1, 4)


@pytest.mark.key("timeouts.stream_idle_s")
def test_an_answer_that_pauses_for_stream_idle_s_is_given_up():
    """After its fifth line: the client gets an error as the last one."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        one.sim.faults.add("hang", route="/api/generate", after_chunks=5)
        took_s, status, error = await asked(one)
        assert status == 200
        assert error
        return took_s

    assert compare_small(story, "timeouts.stream_idle_s", [1, 4]) == about(1, 4)


async def leave(raw, one):
    """Begin a long answer and leave: how long Ollama went on with it."""
    await one.ask(hello(SMALL, tokens=1))
    await raw.send(request_bytes("POST", "/api/generate", json.dumps(hello(SMALL, tokens=1000))))
    await raw.reader.read(1)
    raw.close()
    left_s = asyncio.get_running_loop().time()
    await asyncio.sleep(12)
    answer = seen(one, "/api/generate")[-1]
    return None if answer.is_finished else answer.closed_at_s - left_s


UNWANTED = {"backends.local.suppress_cancel": True}


@pytest.mark.key("timeouts.unwanted_s")
def test_an_answer_whose_client_has_left_is_read_for_unwanted_s():
    """With `suppress_cancel`; to its end, where that comes first."""

    async def story(one):
        return await leave(await connect(one.router.url), one)

    *cut, finished = compare_small(story, "timeouts.unwanted_s", [1, 4, 60], UNWANTED)
    assert cut == about(1, 4)
    assert finished is None


@pytest.mark.key("limits.unwanted_bytes")
def test_at_most_unwanted_bytes_are_read_of_an_answer_whose_client_has_left():
    """With `suppress_cancel`: five times the bytes are five times the seconds."""

    async def story(one):
        return await leave(await connect(one.router.url), one)

    few, many = compare_small(story, "limits.unwanted_bytes", [10_000, 50_000], UNWANTED)
    assert many / few == pytest.approx(5, rel=0.1)


@pytest.mark.key("backends.*.suppress_cancel")
def test_an_answer_whose_client_has_left_is_read_on_only_with_suppress_cancel():
    """Else Ollama is cut off at once."""

    async def story(one):
        return await leave(await connect(one.router.url), one)

    cut_s, finished = compare_small(story, "backends.local.suppress_cancel", [False, True])
    assert cut_s < 1
    assert finished is None


@pytest.mark.key("timeouts.control_s")
@pytest.mark.parametrize("kind", ["hang", "slow"])
def test_an_ollama_whose_list_of_loaded_models_does_not_come_within_control_s_is_away(kind):
    """Whether it says nothing, or answers too late."""

    async def story(one):
        one.sim.faults.add(kind, route="/api/ps", after_chunks=0, delay_s=1000.0, times=-1)
        started_s = asyncio.get_running_loop().time()
        for _ in range(100):
            await asyncio.sleep(0.1)
            if (await get(one.router.url, "/readyz")).status == 503:
                break
        return asyncio.get_running_loop().time() - started_s

    config = {**ALONE, "snapshot.fall": 1}
    assert compare_small(story, "timeouts.control_s", [2, 6], config) == about(2, 6)


def first_answer_s(facts_s, model):
    """How long the first request for `model` takes in front of an Ollama that never shows SMALL."""

    async def run():
        async with running_simulator(SimConfig(models=(SMALL, MIDDLE))) as sim:
            sim.faults.add("hang", route="/api/show", model=SMALL, after_chunks=0, times=-1)
            async with in_front_of(sim.url, {"timeouts.facts_s": facts_s}) as router:
                started_s = asyncio.get_running_loop().time()
                assert (await send(router.url, "POST", "/api/generate", hello(model))).status == 200
                return asyncio.get_running_loop().time() - started_s

    return run_virtual(run())


@pytest.mark.key("timeouts.facts_s")
def test_a_model_that_ollama_does_not_show_is_served_after_facts_s():
    """By the size of its download; other models are served without waiting for it."""
    short_s, long_s = (first_answer_s(facts_s, SMALL) for facts_s in (5, 20))
    assert long_s - short_s == pytest.approx(15, abs=1)
    assert first_answer_s(20, MIDDLE) < short_s
