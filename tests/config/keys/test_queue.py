"""`queue`: who may wait for a model's turn, for how long, and who goes first."""

import asyncio
import json

import pytest

from router.core.units import MIB
from tests.config.keys.play import ALONE, BIG, OTHER, chat, compare, hello, play, send


async def busy(one, tokens):
    """The big model, loaded, with one request under way that takes `tokens` / 100 seconds."""
    await one.ask(hello(BIG, tokens=1))
    task = asyncio.create_task(one.ask(hello(BIG, tokens=tokens)))
    await asyncio.sleep(0.2)
    return task


@pytest.mark.key("queue.max_waiting")
def test_a_request_beyond_max_waiting_is_refused():
    """Three want to wait."""

    async def story(one):
        first = await busy(one, 300)
        replies = await asyncio.gather(*(one.ask(hello(OTHER)) for _ in range(3)))
        await first
        return sorted(reply.status for reply in replies)

    assert compare(story, "queue.max_waiting", [1, 2, 3]) == [[200, 503, 503], [200, 200, 503], [200, 200, 200]]


@pytest.mark.key("queue.wait_s")
def test_a_request_that_waits_for_wait_s_is_refused_with_a_retry_after():
    """The model in its way is busy for ten seconds; the load that follows, of a second, does not count."""

    async def story(one):
        first = await busy(one, 1000)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        reply = await send(one.router.url, "POST", "/api/generate", hello(OTHER, tokens=1))
        took_s = loop.time() - started_s
        await first
        return reply.status, "retry-after" in reply.headers, took_s

    refused, served = compare(story, "queue.wait_s", [3, 10.5])
    assert refused == (503, True, pytest.approx(3, abs=0.5))
    assert served == (200, False, pytest.approx(11.5, abs=1.5))


async def overtaken(one):
    """One request for another model while the loaded one is never idle: how long it took, how many went before it."""
    served, is_over = 0, asyncio.Event()

    async def hot():
        nonlocal served
        while not is_over.is_set():
            await one.ask(hello(BIG, tokens=50))
            served += 1

    await one.ask(hello(BIG, tokens=1))
    tasks = []
    for _ in range(2):
        tasks.append(asyncio.create_task(hot()))
        await asyncio.sleep(0.25)
    before = served
    reply = await one.ask(hello(OTHER, tokens=1))
    count = served - before
    is_over.set()
    await asyncio.gather(*tasks)
    assert reply.status == 200
    return reply.took_s, count


@pytest.mark.key("queue.age_bound_s")
def test_a_request_that_has_waited_for_age_bound_s_goes_before_those_for_the_loaded_model():
    """The rest is the last request that was let in before, and a load of a second and a half."""
    config = {**ALONE, "queue.cost_factor": 0}
    waits = [took_s for took_s, _ in compare(overtaken, "queue.age_bound_s", [2, 8], config)]
    assert waits == [pytest.approx(2 + 3, abs=1.5), pytest.approx(8 + 3, abs=1.5)]


@pytest.mark.key("queue.cost_factor")
def test_the_age_bound_is_at_least_cost_factor_times_what_the_switch_costs():
    """Here about four and a half seconds: two loads, and an unload."""
    config = {**ALONE, "queue.age_bound_s": 2}
    none, twice, four = (took_s for took_s, _ in compare(overtaken, "queue.cost_factor", [0, 2, 4], config))
    assert none == pytest.approx(2 + 3, abs=1.5)
    assert four - twice == pytest.approx(2 * 4.5, abs=2)


@pytest.mark.key("queue.wait_s")
def test_a_switch_that_costs_much_is_made_before_its_requests_are_refused():
    """By its cost alone it would wait for minutes, while the loaded model is never idle."""
    config = {**ALONE, "queue.cost_factor": 100}
    waits = [took_s for took_s, _ in compare(overtaken, "queue.wait_s", [12, 24], config)]
    assert waits == [pytest.approx(10 + 3, abs=2), pytest.approx(12 + 3, abs=2)]


@pytest.mark.key("queue.affinity_count")
def test_affinity_count_requests_for_the_loaded_model_may_pass_another():
    """However old that one gets. Two were under way when it came."""
    config = {**ALONE, "queue.age_bound_s": 1000}
    (_, few), (_, many) = compare(overtaken, "queue.affinity_count", [2, 12], config)
    assert few <= 2 + 2 + 2
    assert many - few == pytest.approx(10, abs=1)


@pytest.mark.key("queue.wait_s")
def test_a_request_that_waits_for_memory_is_refused_after_wait_s_as_well():
    """`nothing_fits: wait`, and the memory never comes."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        reply = await send(one.router.url, "POST", "/api/generate", hello(BIG))
        return reply.status, loop.time() - started_s, json.loads(reply.body)["error"]

    config = {**ALONE, "defaults.nothing_fits": "wait"}
    found = compare(story, "queue.wait_s", [2, 6], config)
    assert [(status, took_s) for status, took_s, _ in found] == [
        (503, pytest.approx(2, abs=1.1)),
        (503, pytest.approx(6, abs=1.1)),
    ]
    assert all("too big" in text for _, _, text in found)


def test_what_no_wait_would_help_is_refused_at_once():
    """`nothing_fits: wait` for a model that is bigger than all cards; SDKs do not try again."""

    async def story(one):
        started_s = asyncio.get_running_loop().time()
        replies = [await send(one.router.url, "POST", path, body) for path, body in asked]
        assert asyncio.get_running_loop().time() - started_s < 2
        return [
            (reply.status, reply.headers.get("x-should-retry"), "retry-after" in reply.headers) for reply in replies
        ]

    asked = (
        ("/api/generate", hello(BIG)),
        ("/v1/chat/completions", chat(BIG)),
        ("/api/chat", {"model": "mine", "messages": []}),
    )
    chains = {"chains": {"mine": [{"model": BIG, "num_ctx": 8192}, "gone:1b"]}}
    config = {**ALONE, **chains, "defaults.nothing_fits": "wait"}
    assert play(story, config, cards=(8192,)) == [(503, "false", False)] * 3


@pytest.mark.key("queue.wait_s")
def test_a_request_that_waits_for_a_connection_to_ollama_is_refused_after_wait_s_as_well():
    """The only one is busy for ten seconds."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        first = asyncio.create_task(one.ask(hello(BIG, tokens=1000)))
        await asyncio.sleep(0.2)
        reply = await one.ask(hello(BIG, tokens=1))
        await first
        return reply.status, reply.took_s

    found = compare(story, "queue.wait_s", [2, 30], {**ALONE, "limits.pool": 1})
    assert found == [(503, pytest.approx(2, abs=0.5)), (200, pytest.approx(10, abs=1))]


@pytest.mark.key("queue.ahead")
def test_ahead_requests_are_sent_to_a_model_beyond_those_that_it_answers():
    """Of six at once, on a server with one slot."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        tasks = [asyncio.create_task(one.ask(hello(BIG, tokens=100))) for _ in range(6)]
        await asyncio.sleep(0.5)
        (resident,) = one.router.router.backend.world.residents.values()
        in_flight = resident.in_flight
        replies = await asyncio.gather(*tasks)
        return in_flight, {reply.status for reply in replies}

    assert compare(story, "queue.ahead", [0, 1, 3]) == [(1, {200}), (2, {200}), (4, {200})]
