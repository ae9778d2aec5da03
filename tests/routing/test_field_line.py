"""What waits for what: cards and models that have nothing to do with each other, on whole routers."""

import asyncio
from dataclasses import replace

import pytest

from tests.routing.test_dispatch import ALONE, BIG, SMALL, SPEEDS, hello, play

SLOW = replace(SPEEDS, load_mib_per_s=3000, tokens_per_s=10)
OTHER = "qwen3:14b"


def asks(model, tokens, num_ctx=8192):
    return hello(model, tokens, options={"num_ctx": num_ctx, "num_predict": tokens})


async def behind_a_long_answer(one):
    """Return when each is answered: a newcomer, after a long answer began and somebody began to wait for its end."""
    loop = asyncio.get_running_loop()
    long = asyncio.create_task(one.ask(asks(BIG, 2500)))
    await asyncio.sleep(12)
    waits = asyncio.create_task(one.ask(asks(OTHER, 4, 32768)))
    await asyncio.sleep(15)
    started_s = loop.time()
    newcomer = await one.ask(asks(SMALL, 4))
    assert (newcomer.status, long.done(), waits.done()) == (200, False, False)
    found = newcomer.ttft_s
    assert [(await task).status for task in (long, waits)] == [200, 200]
    return found, loop.time() - started_s


@pytest.mark.parametrize("cards", [(24564, 12288), (32000,)], ids=["on another card", "beside it"])
def test_a_model_that_fits_now_does_not_wait_for_somebody_elses_long_answer(cards):
    """It waits for its own load only; who waits for the long answer is served soon after its end all the same."""
    first_token_s, end_s = play(behind_a_long_answer, ALONE, cards=cards, speeds=SLOW)
    assert first_token_s < 4
    assert end_s < 260


def test_models_that_are_asked_for_in_turn_are_each_served_by_the_best_that_fits():
    """A chat on the biggest, and a background task on a small one after each turn: no turn gets a smaller model."""

    async def story(one):
        served = []
        for _ in range(8):
            served.append((await one.ask(hello(BIG, 20))).served)
            served.append((await one.ask(hello(SMALL, 20))).served)
        return served

    assert play(story, {}) == [BIG, SMALL] * 8


def test_what_waits_behind_a_busy_model_is_served_within_the_bound_and_the_answer_under_way():
    """However many requests for the busy model keep coming."""

    async def story(one):
        await one.ask(hello(BIG, 1))
        is_over = asyncio.Event()

        async def hot():
            while not is_over.is_set():
                await one.ask(hello(BIG, 50))

        tasks = [asyncio.create_task(hot()) for _ in range(4)]
        await asyncio.sleep(1)
        reply = await one.ask(hello(OTHER, 1))
        is_over.set()
        await asyncio.gather(*tasks)
        return reply.took_s

    longest_answer_s, load_s, slack_s = 2.5, 3.0, 2.0
    for bound_s in (5, 20):
        took_s = play(story, {**ALONE, "queue.age_bound_s": bound_s, "queue.cost_factor": 0})
        assert bound_s < took_s < bound_s + longest_answer_s + load_s + slack_s


def test_a_request_that_comes_during_a_load_waits_for_the_best_though_a_smaller_variant_is_loaded():
    """What the load takes is not other programs' memory: the bigger variant fits as soon as the switch is over."""

    async def story(one):
        await one.ask(hello(SMALL, 1, options={"num_ctx": 8192}))
        loading = asyncio.create_task(one.ask(hello(OTHER, 1, options={"num_ctx": 32768})))
        served = []
        for _ in range(3):
            await asyncio.sleep(0.5)
            served.append(asyncio.create_task(one.ask(hello(BIG, 1))))
        await loading
        return [(await reply).served for reply in served]

    assert play(story, {"chains": {BIG: [BIG, SMALL], OTHER: [OTHER]}}) == [BIG] * 3
