"""`limits`: sizes and numbers."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest
import zstandard

from ollama_simulator.clock import run_virtual
from tests.config.keys.play import (
    ALONE,
    EMBEDDER,
    SMALL,
    chat,
    compare,
    compare_small,
    connect,
    get,
    hello,
    in_front_of,
    seen,
    send,
    state,
)
from tests.fakes import RawClient, request_bytes
from tests.http.raw_upstream import STREAM_HEAD, chunk, raw_upstream


@pytest.mark.key("limits.body_bytes")
def test_a_body_above_body_bytes_is_refused():
    """Of about 1100 bytes."""

    async def story(one):
        body = hello(SMALL, system="x" * 1000)
        return (await send(one.router.url, "POST", "/api/generate", body)).status

    assert compare_small(story, "limits.body_bytes", [1000, 2000]) == [413, 200]


@pytest.mark.key("limits.buffered_bytes")
def test_bodies_that_together_exceed_buffered_bytes_are_refused():
    """The first holds 1.5 MB without sending its last byte; it is served when it does, and then there is room again."""

    async def story(one):
        body = json.dumps(hello(SMALL, system="x" * 1_500_000)).encode()
        first = await connect(one.router.url)
        await first.send(request_bytes("POST", "/api/generate", body)[:-1])
        await asyncio.sleep(1)
        second = await connect(one.router.url)
        statuses = [(await second.ask("POST", "/api/generate", body)).status]
        await first.send(b"}")
        statuses.append((await first.reply()).status)
        statuses.append((await send(one.router.url, "POST", "/api/generate", json.loads(body))).status)
        first.close()
        second.close()
        return statuses

    assert compare_small(story, "limits.buffered_bytes", [2_000_000, 4_000_000]) == [[503, 200, 200], [200, 200, 200]]


@pytest.mark.key("limits.header_bytes")
def test_a_head_above_header_bytes_is_refused():
    """Of about 3100 bytes."""

    async def story(one):
        return (await get(one.router.url, "/api/version", headers=[("X-Long", "x" * 3000)])).status

    assert compare_small(story, "limits.header_bytes", [2048, 4096]) == [431, 200]


@pytest.mark.key("limits.headers")
def test_more_header_lines_than_headers_are_refused():
    """Twenty, and the host."""

    async def story(one):
        lines = [(f"X-{number}", "x") for number in range(20)]
        return (await get(one.router.url, "/api/version", headers=lines)).status

    assert compare_small(story, "limits.headers", [20, 21]) == [431, 200]


@pytest.mark.key("limits.zstd_bytes")
def test_a_body_that_unpacks_to_more_than_zstd_bytes_is_refused():
    """Packed it is small."""

    async def story(one):
        body = chat(SMALL) | {"user": "x" * 5000}
        raw = await connect(one.router.url)
        packed = zstandard.compress(json.dumps(body).encode())
        assert len(packed) < 1000
        reply = await raw.ask("POST", "/v1/chat/completions", packed, [("Content-Encoding", "zstd")])
        raw.close()
        return reply.status

    assert compare_small(story, "limits.zstd_bytes", [4000, 6000]) == [413, 200]


@pytest.mark.key("limits.inline_bytes")
def test_a_body_above_inline_bytes_is_read_in_a_thread():
    """Of about 1100 bytes; seen by the work that the loop hands to threads of bodies."""

    async def story(one):
        loop, names = asyncio.get_running_loop(), []
        hand_over = loop.run_in_executor

        def observed(executor, work, *args):
            names.append(getattr(executor, "_thread_name_prefix", ""))
            return hand_over(executor, work, *args)

        loop.run_in_executor = observed
        try:
            assert (await send(one.router.url, "POST", "/api/generate", hello(SMALL, system="x" * 1000))).status == 200
        finally:
            del loop.run_in_executor
        return "bodies" in names

    assert compare_small(story, "limits.inline_bytes", [1000, 2000]) == [True, False]


@pytest.mark.key("limits.body_values")
def test_a_body_with_more_than_body_values_is_refused():
    """An object of three members, one of them a list of ten."""

    async def story(one):
        body = hello(SMALL, unknown=[0] * 10)
        return (await send(one.router.url, "POST", "/api/generate", body)).status

    assert compare_small(story, "limits.body_values", [13, 14]) == [400, 200]


async def needs(one):
    """The bytes that two models need, as explained."""
    pages = [await get(one.router.admin_url, f"/router/explain?model={model}") for model in (SMALL, EMBEDDER)]
    return [json.loads(page.body)["variants"][0]["need_bytes"] for page in pages]


@pytest.mark.key("limits.facts_bytes")
def test_models_beyond_facts_bytes_are_sized_by_their_download():
    """Which is a coarse figure, and a larger one."""
    coarse, exact = compare(needs, "limits.facts_bytes", [1000, 1 << 20], models=(SMALL, EMBEDDER))
    assert all(rough > need for rough, need in zip(coarse, exact, strict=True))


@pytest.mark.key("limits.model_facts_bytes")
def test_a_model_of_more_than_model_facts_bytes_is_sized_by_its_download():
    """Another one is not."""
    coarse, exact = compare(needs, "limits.model_facts_bytes", [25_000, 1 << 20], models=(SMALL, EMBEDDER))
    assert (coarse[0] > exact[0], coarse[1]) == (True, exact[1])


@pytest.mark.key("limits.connections")
def test_a_connection_beyond_connections_is_turned_away():
    """The third."""

    async def story(one):
        open_ones = [await connect(one.router.url) for _ in range(2)]
        statuses = [(await raw.ask("GET", "/api/version")).status for raw in open_ones]
        third = await get(one.router.url, "/api/version")
        for raw in open_ones:
            raw.close()
        return [*statuses, third.status]

    assert compare_small(story, "limits.connections", [2, 3]) == [[200, 200, 503], [200, 200, 200]]


@pytest.mark.key("limits.connections_per_address")
def test_an_address_with_connections_per_address_gets_no_further_one():
    """Unless some of them are idle; those on the admin address count apart."""

    async def story(one):
        open_ones = [await connect(one.router.url) for _ in range(2)]
        statuses = [(await raw.ask("GET", "/api/version")).status for raw in open_ones]
        statuses.append((await get(one.router.url, "/api/version")).status)
        statuses.append((await get(one.router.admin_url, "/readyz")).status)
        await asyncio.sleep(2)
        statuses.append((await get(one.router.url, "/api/version")).status)
        for raw in open_ones:
            raw.close()
        return statuses

    expected = [[200, 200, 503, 200, 200], [200, 200, 200, 200, 200]]
    assert compare_small(story, "limits.connections_per_address", [2, 3]) == expected


@pytest.mark.key("limits.pool")
def test_at_most_pool_connections_to_ollama_are_open():
    """Three requests at once."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        before = len(seen(one, "/api/generate"))
        replies = await asyncio.gather(*(one.ask(hello(SMALL, tokens=50)) for _ in range(3)))
        assert [reply.status for reply in replies] == [200] * 3
        return len({found.connection for found in seen(one, "/api/generate")[before:]})

    config = {**ALONE, "queue.ahead": 8}
    assert compare_small(story, "limits.pool", [1, 2, 9], config) == [1, 2, 3]


async def streaming(one, count, host):
    """Open so many slow streams from one address, and wait until all that get to Ollama are under way."""
    port = urlsplit(one.router.url).port
    raws = [RawClient(*await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))) for _ in range(count)]
    for raw in raws:
        await raw.send(request_bytes("POST", "/api/generate", json.dumps(hello(SMALL, tokens=5000) | {"stream": True})))
    await asyncio.sleep(1)
    return raws


@pytest.mark.key("limits.pool_reserve")
def test_a_client_with_few_requests_gets_a_connection_of_pool_reserve():
    """Another one has many streams, that take all others."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        before = len(seen(one, "/api/generate"))
        many = await streaming(one, 20, "127.0.0.2")
        taken = len(seen(one, "/api/generate")) - before
        few = await connect(one.router.url)
        await few.send(request_bytes("POST", "/api/generate", json.dumps(hello(SMALL, tokens=1) | {"stream": True})))
        await asyncio.sleep(3)
        found = len(seen(one, "/api/generate")) - before
        for raw in (*many, few):
            raw.close()
        return taken, found

    config = {**ALONE, "limits.pool": 16, "queue.ahead": 100}
    assert compare_small(story, "limits.pool_reserve", [0, 2], config) == [(16, 16), (14, 15)]


@pytest.mark.key("limits.list_pool")
def test_lists_have_connections_of_their_own():
    """Ollama withholds all of them; one address gets half of the connections, and streams take none."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        many = await streaming(one, 3, "127.0.0.2")
        assert (await get(one.router.url, "/api/tags")).status == 200
        assert (await get(one.router.url, "/api/ps")).status == 200
        assert (await send(one.router.url, "POST", "/api/show", {"model": SMALL})).status == 200
        before = len(seen(one, "/api/show"))
        one.sim.faults.add("hang", route="/api/show", after_chunks=0, times=-1)
        asking = [asyncio.create_task(send(one.router.url, "POST", "/api/show", {"model": SMALL})) for _ in range(9)]
        await asyncio.sleep(1)
        found = len(seen(one, "/api/show")) - before
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for raw in many:
            raw.close()
        return found

    assert compare_small(story, "limits.list_pool", [2, 6, 16], {**ALONE, "limits.pool": 1}) == [1, 3, 8]


@pytest.mark.key("limits.control_bytes")
def test_an_answer_above_control_bytes_is_not_read():
    """The list of models has some 500 bytes here, the model's metadata megabytes."""

    async def story(one):
        is_ready = (await get(one.router.url, "/readyz")).status == 200
        (facts,) = one.router.router.backend.world.catalog.values() or [None]
        return is_ready, facts is not None and bool(facts.tensors), (await state(one))["ollama"]["error"]

    none, some, all_of_it = compare_small(story, "limits.control_bytes", [100, 10_000, 64 << 20])
    assert none[:2] == (False, False)
    assert "larger than 100 bytes" in none[2]
    assert (some, all_of_it) == ((True, False, ""), (True, True, ""))


def last_line_of_a_pull(line_bytes):
    """What ends a stream whose last line comes in pieces."""

    async def script(visit):
        await visit.say(STREAM_HEAD)
        for _ in range(10):
            await visit.say(chunk(b" " * 100))
            await asyncio.sleep(0.1)
        await visit.say(chunk(b'{"status":"success"}\n') + b"0\r\n\r\n")

    async def run():
        async with (
            raw_upstream(script) as upstream,
            in_front_of(upstream.url, {"limits.line_bytes": line_bytes}) as one,
        ):
            return (await send(one.url, "POST", "/api/pull", {"model": SMALL})).body

    return json.loads(run_virtual(run()))


@pytest.mark.key("limits.line_bytes")
def test_a_stream_with_a_line_above_line_bytes_ends_as_an_error():
    """Of a thousand bytes, here."""
    assert "more than 500 bytes" in last_line_of_a_pull(500)["error"]
    assert last_line_of_a_pull(5000) == {"status": "success"}
