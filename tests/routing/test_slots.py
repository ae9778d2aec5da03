"""Many requests for one loaded model: they wait here, enter in turn, and none dies at a silent Ollama."""

import asyncio
import json
from collections import Counter

import pytest

from ollama_simulator.machine.spec import Speeds
from router.core.ollama.options import ServerSettings
from router.http.server.cycle import run
from tests.config.keys.play import ALONE, BIG, EMBEDDER, OTHER, SMALL, chat, hello, play, send

SPEEDS = Speeds(load_mib_per_s=10000, tokens_per_s=100, cpu_tokens_per_s=4)
TWO_S = 200
"""Tokens of an answer of two seconds."""


def line_of(one):
    return one.router.router.backend.line


def resident_of(one, index=0):
    return list(one.router.router.backend.world.residents.values())[index]


async def flood(one, count, body, *, apart_s=0.002):
    """`count` requests in order; of each its status, when it ended, and the headers of its answer."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()

    async def ask(index):
        await asyncio.sleep(index * apart_s)
        reply = await send(one.router.url, "POST", "/api/generate", body)
        return reply.status, loop.time() - started_s, reply

    return await asyncio.gather(*(ask(index) for index in range(count)))


def test_t8_of_a_flood_on_a_loaded_model_all_are_served_in_turn_or_refused_after_wait_s():
    """At defaults, save that they wait for a tenth of the time: no 504, and Ollama never has more than two."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        most, is_over = 0, False

        async def watch():
            nonlocal most
            while not is_over:
                most = max(most, resident_of(one).in_flight)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        found = await flood(one, 40, hello(BIG, tokens=TWO_S))
        is_over = True
        await watching
        assert Counter(status for status, *_ in found) == {200: 16, 503: 24}
        served = [end_s for status, end_s, _ in found if status == 200]
        assert served == sorted(served)
        assert [status for status, *_ in found] == [200] * 16 + [503] * 24
        for status, end_s, reply in found:
            if status == 503:
                assert end_s == pytest.approx(30, abs=0.5)
                assert int(reply.headers["retry-after"]) >= 1
                assert int(reply.headers["x-router-position"]) >= 1
        assert (most, line_of(one).depth, resident_of(one).in_flight) == (2, 0, 0)

    play(story, {**ALONE, "queue.wait_s": 30}, speeds=SPEEDS)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/api/generate", hello(OTHER), {"error": "server busy, please try again.  maximum pending requests exceeded"}),
        ("/v1/chat/completions", chat(OTHER), "api_error"),
        ("/v1/messages", {**chat(OTHER), "max_tokens": 9}, "overloaded_error"),
    ],
)
def test_b5_a_full_queue_of_a_loaded_model_refuses_at_once_in_the_shape_of_the_dialect(path, body, expected):
    """Within 20 ms, with the time after which there is room, and the place that it would have had."""

    async def story(one):
        await one.ask(hello(OTHER, tokens=1))
        waiting = asyncio.create_task(flood(one, 6, hello(OTHER, tokens=TWO_S)))
        await asyncio.sleep(5)
        loop = asyncio.get_running_loop()
        more = asyncio.create_task(flood(one, 2, hello(OTHER)))  # instead of the two that have entered meanwhile
        await asyncio.sleep(0.05)
        started_s = loop.time()
        reply = await send(one.router.url, "POST", path, body)
        assert loop.time() - started_s <= 0.02
        assert (reply.status, reply.headers["x-router-position"]) == (503, "5")
        assert 6 <= int(reply.headers["retry-after"]) <= 10
        value = json.loads(reply.body)
        assert value == expected or value["error"]["type"] == expected
        await asyncio.gather(waiting, more)

    play(story, {**ALONE, "queue.max_waiting": 4}, speeds=SPEEDS)


def test_b6_at_three_times_the_load_that_can_be_served_the_model_is_never_idle_and_nobody_is_lost():
    """For a minute. All have an answer; those served took the wait and their own time at most."""

    async def story(one):
        await one.ask(hello(OTHER, tokens=1))
        found = await flood(one, 90, hello(OTHER, tokens=TWO_S), apart_s=2 / 3)
        assert Counter(status for status, *_ in found).keys() == {200, 503}
        served = [(end_s, index) for index, (status, end_s, _) in enumerate(found) if status == 200]
        assert len(served) * 2 >= 0.95 * max(end_s for end_s, _ in served)
        assert max(end_s - index * 2 / 3 for end_s, index in served) <= 20 + 2 * 2 + 1

    play(story, {**ALONE, "queue.wait_s": 20}, speeds=SPEEDS)


def test_a_server_with_more_slots_than_were_named_is_used_in_full_before_long():
    """It shows them one by one; without streams too."""
    for stream in (True, False):

        async def story(one, stream=stream):
            await one.ask(hello(SMALL, tokens=1))
            found = await flood(one, 60, {**hello(SMALL, tokens=TWO_S), "stream": stream})
            assert {status for status, *_ in found} == {200}
            return max(end_s for _, end_s, _ in found), resident_of(one).slots.count

        took_s, count = play(story, ALONE, speeds=SPEEDS, settings=ServerSettings(num_parallel=4))
        assert count == 4
        assert took_s <= 1.5 * 60 * 2 / 4


def test_a_server_with_as_many_slots_as_named_shows_no_further_one():
    """However many wait, streamed or not."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        await asyncio.gather(
            *(
                flood(one, 20, {**hello(SMALL, tokens=tokens), "stream": stream})
                for tokens in (3, 50, 200)
                for stream in (True, False)
            )
        )
        return resident_of(one).slots.count

    assert play(story, {**ALONE, "queue.wait_s": 3600}, speeds=SPEEDS) == 1


def test_a_request_without_a_prompt_waits_for_no_slot():
    """Ollama answers it at once."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        flooded = asyncio.create_task(flood(one, 10, hello(SMALL, tokens=TWO_S)))
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        assert (await send(one.router.url, "POST", "/api/generate", {"model": SMALL})).status == 200
        assert loop.time() - started_s < 0.5
        await flooded

    play(story, ALONE, speeds=SPEEDS)


def test_a_request_that_waits_for_its_slot_has_no_task():
    """Thousands may wait: each costs its place in the queue, and nothing else."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        asking = [asyncio.create_task(one.ask(hello(SMALL, tokens=20))) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert line_of(one).depth > 10
        at_work = [task for task in asyncio.all_tasks() if task.get_coro().cr_code is run.__code__]
        assert len(at_work) <= 2  # the answers under way
        assert {reply.status for reply in await asyncio.gather(*asking)} == {200}

    play(story, ALONE, speeds=SPEEDS)


def test_whoever_leaves_gives_back_the_place_and_the_slot():
    """Waiting, just let in, or under way: all others are served, and nothing is left."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        tasks = [asyncio.create_task(one.ask(hello(SMALL, tokens=20))) for _ in range(60)]
        for index, task in enumerate(tasks):
            if index % 3:
                await asyncio.sleep(0.07)
                task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        kept = [reply for index, reply in enumerate(replies) if not index % 3]
        assert {reply.status for reply in kept} == {200}
        await asyncio.sleep(1)
        assert (line_of(one).depth, resident_of(one).in_flight, resident_of(one).slots.under_way) == (0, 0, 0)
        assert (await one.ask(hello(SMALL))).took_s < 0.5

    play(story, ALONE, speeds=SPEEDS)


def test_embeddings_wait_for_their_slot_as_well():
    """A model that only embeds has one, and Ollama takes one input after the other."""

    async def story(one):
        body = {"model": EMBEDDER, "input": ["x"] * 3}
        await send(one.router.url, "POST", "/api/embed", body)
        replies = await asyncio.gather(*(send(one.router.url, "POST", "/api/embed", body) for _ in range(20)))
        assert {reply.status for reply in replies} == {200}
        assert resident_of(one).slots.count == 1

    config = {**ALONE, "backends.local.server.num_parallel": 4}
    play(story, config, models=(EMBEDDER,), settings=ServerSettings(num_parallel=4))
