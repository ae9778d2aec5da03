"""The section `fleet`: which backend a request goes to, and where it goes after a failure."""

from __future__ import annotations

import asyncio

import pytest

from tests.config.keys.play import SMALL, hello
from tests.routing.fleet.stage import play

TWO = {"a": (24564,), "b": (24564,)}
THREE = {**TWO, "c": (24564,)}
ALONE = {"defaults.auto_chains": "off"}


def compare(story, key, values, cards=TWO):
    return [play(story, cards, {**ALONE, key: value}) for value in values]


def talk(number, tokens=4):
    return {"model": SMALL, "messages": [{"role": "user", "content": f"[[tokens={tokens}]] talk {number}"}]}


@pytest.mark.key("fleet.load_factor")
def test_load_factor_says_when_a_conversation_leaves_a_busy_backend():
    """With a high one it waits for its own; with a low one another one takes it."""

    async def story(one):
        await one.load_everywhere(SMALL)
        long = [asyncio.create_task(one.ask(talk(1, tokens=300), "/api/chat")) for _ in range(6)]
        found = await asyncio.gather(*long)
        return len({backend for _, backend, _ in found})

    assert compare(story, "fleet.load_factor", (100, 0)) == [1, 2]


@pytest.mark.key("fleet.retries")
def test_retries_says_how_often_a_request_moves():
    """Two of three backends fail it."""

    async def story(one):
        await one.load_everywhere(SMALL)
        first = (await one.ask(talk(1), "/api/chat"))[1]
        works = next(name for name in THREE if name != first)
        for name in THREE:
            if name != works:
                one.sims[name].faults.add("status", status=503, route="/api/chat", times=-1)
        return (await one.ask(talk(1), "/api/chat"))[0]

    assert compare(story, "fleet.retries", (0, 2), THREE) == [503, 200]


@pytest.mark.key("fleet.retry_share")
def test_retry_share_bounds_the_requests_that_are_sent_again():
    """Three are always allowed; of the next ones a part."""

    async def story(one):
        await one.load_everywhere(SMALL)
        for sim in one.sims.values():
            sim.faults.add("status", status=503, route="/api/chat", times=-1)
            sim.seen.clear()
        for _ in range(10):
            await one.ask(talk(1), "/api/chat")
        return sum(1 for sim in one.sims.values() for seen in sim.seen if seen.path == "/api/chat")

    few, all_of_them = compare(story, "fleet.retry_share", (0, 1))
    assert (few, all_of_them) == (13, 20)


@pytest.mark.key("fleet.breaker_failures")
def test_breaker_failures_says_after_how_many_a_model_is_left_out():
    """Until then its backend still gets its requests."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        one.sims[first].faults.add("status", status=500, route="/api/generate", times=-1)
        return [(await one.ask(hello(SMALL)))[0] for _ in range(4)]

    assert compare(story, "fleet.breaker_failures", (2, 4)) == [[500, 500, 200, 200], [500] * 4]


@pytest.mark.key("fleet.breaker_open_s")
def test_breaker_open_s_says_for_how_long():
    """Then it is tried again."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        one.sims[first].faults.add("status", status=500, route="/api/generate", times=5)
        for _ in range(5):
            await one.ask(hello(SMALL))
        await asyncio.sleep(20)
        return any(
            "left out" in row["reason"] for row in (await one.admin(f"/router/explain?model={SMALL}"))["ranking"]
        )

    assert compare(story, "fleet.breaker_open_s", (10, 60)) == [False, True]
