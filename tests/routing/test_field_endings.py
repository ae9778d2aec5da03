"""Switches that end neither well nor by a refused load: who is answered with what, and what happens next."""

import asyncio
import json

import pytest

from tests.routing.test_dispatch import ALONE, BIG, MIDDLE, SMALL, hello, play


def test_an_ollama_that_is_gone_is_tried_seldom_and_those_who_wait_are_told():
    """It answers what is read and breaks off every load: three tries, then 502 with a time to come back."""

    async def story(one):
        await one.ask(hello(MIDDLE, tokens=1))
        one.sim.faults.add("reset", route="/api/generate", model=SMALL, after_chunks=0, times=-1)
        reply = await one.ask(hello(SMALL))
        assert reply.status == 502
        tries = [seen for seen in one.sim.seen if seen.path == "/api/generate" and seen.model == SMALL]
        assert len(tries) == 3
        assert 1 < reply.took_s < 10

    play(story)


def test_a_load_that_does_not_end_is_answered_with_504_and_left_alone():
    """The next model gets its turn, and the hung one is not tried again at once."""

    async def story(one):
        one.sim.faults.add("hang", route="/api/generate", model=BIG, after_chunks=0, times=-1)
        hung = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(1)
        other = await one.ask(hello(SMALL))
        assert (other.status, (await hung).status) == (200, 504)
        assert other.took_s < 12
        assert "did not end within 8 s" in (await hung).error
        tries = [seen for seen in one.sim.seen if seen.path == "/api/generate" and seen.model == BIG]
        assert len(tries) == 1

    play(story, {**ALONE, "switch.load_timeout_s": 8})


@pytest.mark.parametrize("config", [ALONE, {"chains": {MIDDLE: [MIDDLE, SMALL]}}], ids=["alone", "chain"])
def test_a_load_that_failed_is_named_with_ollamas_own_error(config):
    """Not "would spill", which sends its operator looking for memory."""
    text = "unable to load model: /models/blobs/sha256-0"

    async def story(one):
        body = json.dumps({"error": text})
        one.sim.faults.add("status", status=500, route="/api/generate", model=MIDDLE, times=-1, body=body)
        reply = await one.ask(hello(MIDDLE))
        reasons = [row["reason"] for row in one.router.router.inspector.decisions() if "reason" in row]
        if config is ALONE:
            assert (reply.status, reply.error) == (500, text)
        else:
            assert (reply.status, reply.served) == (200, SMALL)
            assert reasons == [f"fallback: {MIDDLE} could not be loaded: {text}"]

    play(story, config)
