"""`switch`: the waits and deadlines of one change of what is loaded."""

import asyncio
import json

import pytest

from tests.config.keys.play import ALONE, BIG, MIDDLE, OTHER, SMALL, compare, decisions, hello, seen, send, state


def unloads(one, model):
    """When Ollama was asked to unload `model`."""
    bodies = [(found.at_s, json.loads(found.body)) for found in seen(one, "/api/generate")]
    return [at_s for at_s, body in bodies if body["model"] == model and body.get("keep_alive") == 0]


def load_of(one, model):
    """When Ollama was asked to load `model`."""
    bodies = [(found.at_s, json.loads(found.body)) for found in seen(one, "/api/generate")]
    return next(at_s for at_s, body in bodies if body["model"] == model and "prompt" not in body)


async def ended_switch(one, model):
    """How the first switch to `model` has ended, and after how long."""
    while True:
        for row in reversed(await decisions(one)):
            if row["kind"].startswith("switch") and row["model"] == model:
                return row["kind"], row["duration_s"]
        await asyncio.sleep(0.5)


@pytest.mark.key("switch.settle_s")
def test_the_load_comes_settle_s_after_the_unload():
    """Ollama reads free memory late, and would take what the load takes for memory that is not back."""

    async def story(one):
        for model in (BIG, OTHER):
            await one.ask(hello(model, tokens=1))
        return load_of(one, OTHER) - unloads(one, BIG)[0]

    quick, slow = compare(story, "switch.settle_s", [0, 2])
    assert slow - quick == pytest.approx(2, abs=0.3)


def stubborn(one, model, times):
    """Let the next `times` requests that name `model` do nothing; -1 means all."""
    one.sim.faults.add("answer", route="/api/generate", model=model, times=times, status=200, body='{"done":true}')


@pytest.mark.key("switch.unload_timeout_s")
def test_a_model_that_will_not_go_is_given_up_after_unload_timeout_s():
    """Each unload is answered, and none is done."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        stubborn(one, BIG, -1)
        asked = asyncio.create_task(one.ask(hello(OTHER)))
        found = await ended_switch(one, OTHER)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return found

    found = compare(story, "switch.unload_timeout_s", [1, 4])
    assert found == [("switch failed", pytest.approx(1, abs=0.5)), ("switch failed", pytest.approx(4, abs=0.5))]


@pytest.mark.key("switch.poll_s")
def test_ps_is_read_every_poll_s_while_an_unload_is_waited_for():
    """Two seconds lie between an unload that does nothing and the next one."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        stubborn(one, BIG, 1)
        await one.ask(hello(OTHER, tokens=1))
        first_s, second_s = unloads(one, BIG)
        return sum(first_s <= found.at_s <= second_s for found in seen(one, "/api/ps"))

    config = {**ALONE, "snapshot.ps_interval_s": 60, "snapshot.probe_interval_s": 60}
    often, seldom = compare(story, "switch.poll_s", [0.1, 0.5], config)
    assert often == pytest.approx(20, abs=4)
    assert seldom == pytest.approx(4, abs=2)


@pytest.mark.key("switch.memory_timeout_s")
def test_memory_that_does_not_come_back_is_waited_for_for_memory_timeout_s():
    """The driver gives it back six seconds after the unload."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        asked = asyncio.create_task(one.ask(hello(OTHER, tokens=1)))
        found = await ended_switch(one, OTHER)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return found

    given_up, waited = compare(story, "switch.memory_timeout_s", [2, 30], free_lag_s=6.0)
    assert given_up == ("switch failed", pytest.approx(2.6, abs=0.5))
    assert waited == ("switch finished", pytest.approx(8, abs=1))


@pytest.mark.key("switch.memory_timeout_s")
def test_memory_of_a_model_that_a_client_has_unloaded_is_waited_for_as_well():
    """Before the next load, although that would fit beside it."""

    async def story(one):
        await one.ask(hello(SMALL, tokens=1))
        await one.ask({"model": SMALL, "keep_alive": 0})
        await asyncio.sleep(1.5)
        return (await one.ask(hello(MIDDLE, tokens=1))).took_s

    given_up, waited = compare(story, "switch.memory_timeout_s", [2, 30], free_lag_s=6.0)
    assert given_up < 2
    assert waited == pytest.approx(5, abs=1)


@pytest.mark.key("switch.load_timeout_s")
def test_a_load_is_given_up_after_load_timeout_s():
    """It hangs."""

    async def story(one):
        one.sim.cards.change(fail_load={MIDDLE: "hang"})
        asked = asyncio.create_task(one.ask(hello(MIDDLE)))
        found = await ended_switch(one, MIDDLE)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return found

    found = compare(story, "switch.load_timeout_s", [2, 5])
    assert found == [("switch failed", pytest.approx(2, abs=0.5)), ("switch failed", pytest.approx(5, abs=0.5))]


@pytest.mark.key("switch.bar_s")
def test_a_model_whose_load_failed_is_left_alone_for_bar_s():
    """Then it is tried again, which the repaired model passes."""

    async def story(one):
        one.sim.cards.change(fail_load={MIDDLE: "corrupt"})
        assert (await one.ask(hello(MIDDLE))).status == 500
        one.sim.cards.change(fail_load={})
        await asyncio.sleep(5)
        return (await one.ask(hello(MIDDLE))).status

    assert compare(story, "switch.bar_s", [2, 30]) == [200, 500]


@pytest.mark.key("switch.away_pause_s")
def test_an_ollama_that_cannot_be_reached_is_asked_for_a_load_every_away_pause_s_at_most():
    """However many requests come meanwhile; the state can still be read."""

    async def story(one):
        one.sim.faults.add("reset", route="/api/generate", model=MIDDLE, after_chunks=0, times=-1)
        until_s = asyncio.get_running_loop().time() + 120
        while asyncio.get_running_loop().time() < until_s:
            assert (await one.ask(hello(MIDDLE))).status == 502
        return len(seen(one, "/api/generate"))

    often, seldom = compare(story, "switch.away_pause_s", [2, 20])
    assert often > 50
    assert 6 < seldom < 25


@pytest.mark.key("switch.contest_s")
def test_models_take_turns_for_contest_s_after_a_sign_of_others():
    """Somebody unloads twice what was just used; the state says so."""

    async def story(one):
        for _ in range(2):
            await one.ask(hello(SMALL, tokens=1))
            await send(one.sim.url, "POST", "/api/generate", {"model": SMALL, "keep_alive": 0})
            await asyncio.sleep(2)
        await asyncio.sleep(20)
        return any("somebody else unloads" in note for note in (await state(one))["notes"])

    assert compare(story, "switch.contest_s", [10, 60]) == [False, True]
