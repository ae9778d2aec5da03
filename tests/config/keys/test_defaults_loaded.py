"""`defaults`: what is loaded, replaced and kept."""

import asyncio

import pytest

from ollama_simulator.machine.spec import Speeds
from router.core.units import MIB
from tests.config.keys.play import (
    BIG,
    CHAIN,
    EMBEDDER,
    MIDDLE,
    OTHER,
    SMALL,
    compare,
    compare_small,
    explained,
    hello,
    residents,
    send,
    state,
)


async def served_after(one, wait_s):
    """Memory is short, then free for `wait_s` seconds: what is loaded by then, and what serves the next request."""
    one.sim.cards.set_foreign(0, 12000 * MIB)
    await asyncio.sleep(1.5)
    assert (await one.ask(hello(BIG))).served == MIDDLE
    one.sim.cards.set_foreign(0, 0)
    await asyncio.sleep(wait_s)
    return residents(one), (await one.ask(hello(BIG))).served


@pytest.mark.key("defaults.upgrade")
def test_upgrade_goes_up_by_itself_with_a_request_or_never():
    """Once the memory is back."""

    async def story(one):
        return await served_after(one, 8)

    config = {**CHAIN, "defaults.upgrade_after_s": 2}
    found = compare(story, "defaults.upgrade", ["idle", "on_request", "never"], config)
    assert found == [([BIG], BIG), ([MIDDLE], BIG), ([MIDDLE], MIDDLE)]


@pytest.mark.key("defaults.prefer")
def test_the_bigger_variant_comes_back_each_time_at_once_or_only_the_first_or_not():
    """Its memory has been free for one second; the same after a return in vain; then for ten more."""

    async def story(one):
        served = [(await served_after(one, 1))[1]]
        await one.ask({"model": BIG, "keep_alive": 0})
        await asyncio.sleep(1)
        served.append((await served_after(one, 1))[1])
        await asyncio.sleep(10)
        return [*served, (await one.ask(hello(BIG))).served]

    found = compare(story, "defaults.prefer", ["quality", "balanced", "speed"], CHAIN)
    assert found == [[BIG, BIG, BIG], [BIG, MIDDLE, BIG], [MIDDLE, MIDDLE, MIDDLE]]


@pytest.mark.key("defaults.max_load_wait_s")
def test_a_bigger_variant_that_takes_longer_to_load_than_max_load_wait_s_is_not_waited_for():
    """The smaller one serves on; where nothing is loaded, it is waited for all the same."""

    async def story(one):
        return (await served_after(one, 10))[1]

    assert compare(story, "defaults.max_load_wait_s", [60, 1], CHAIN) == [BIG, MIDDLE]


@pytest.mark.key("defaults.max_load_wait_s")
def test_the_memory_of_a_load_of_others_is_waited_for_max_load_wait_s():
    """It takes five seconds, in which ps does not list the model; nothing smaller fits beside it."""

    async def story(one):
        loading = asyncio.create_task(send(one.sim.url, "POST", "/api/generate", {"model": BIG}))
        await asyncio.sleep(1)
        status = (await one.ask(hello(OTHER, tokens=1))).status
        await loading
        return status

    slow = Speeds(load_mib_per_s=4000, tokens_per_s=100, cpu_tokens_per_s=4)
    assert compare(story, "defaults.max_load_wait_s", [60, 1], speeds=slow) == [200, 503]


@pytest.mark.key("defaults.upgrade_after_s")
def test_memory_must_have_been_free_for_upgrade_after_s_before_an_upgrade():
    """Eight seconds are enough for four, not for twelve."""

    async def story(one):
        return (await served_after(one, 8))[1]

    assert compare(story, "defaults.upgrade_after_s", [4, 12], CHAIN) == [BIG, MIDDLE]


@pytest.mark.key("defaults.swaps_per_minute")
def test_swaps_per_minute_holds_back_a_second_upgrade_but_no_way_down():
    """Down, up, down again, up again, all within a minute."""

    async def story(one):
        served = [(await served_after(one, 3))[1]]
        await one.ask({"model": BIG, "keep_alive": 0})
        await asyncio.sleep(1)
        return [*served, (await served_after(one, 3))[1]]

    config = {**CHAIN, "defaults.upgrade_after_s": 1}
    assert compare(story, "defaults.swaps_per_minute", [2, 1], config) == [[BIG, BIG], [BIG, MIDDLE]]


@pytest.mark.key("defaults.swaps_per_minute")
def test_switches_that_were_asked_for_do_not_count_against_swaps_per_minute():
    """Two models that share no chain take turns; then the memory for an upgrade comes back, and it need not wait."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await asyncio.sleep(1.5)
        for model in (BIG, OTHER):
            await one.ask(hello(model, options={"num_ctx": 4096}))
        return (await served_after(one, 3))[1], len(one.loads)

    config = {**CHAIN, "defaults.upgrade_after_s": 1}
    assert compare(story, "defaults.swaps_per_minute", [9, 1], config) == [(BIG, 4), (BIG, 4)]


@pytest.mark.key("defaults.keep")
def test_models_to_keep_are_unloaded_last():
    """Little memory is missing, and either of two residents would make room: the small one goes, unless it is kept."""

    async def story(one):
        await one.ask({"model": EMBEDDER, "input": "hi"}, "/api/embed")
        await one.ask(hello(MIDDLE, options={"num_ctx": 8192}))
        need = (await explained(one, f"{SMALL}&num_ctx=8192"))["variants"][0]["need_bytes"]
        (card,) = (await state(one))["gpus"]
        one.sim.cards.set_foreign(0, card["free_bytes"] - need + 100 * MIB)
        await asyncio.sleep(1.5)
        await one.ask(hello(SMALL, options={"num_ctx": 8192}))
        return residents(one)

    found = compare(story, "defaults.keep", [[], [EMBEDDER]], models=(MIDDLE, SMALL, EMBEDDER))
    assert found == [[MIDDLE, SMALL], [SMALL, EMBEDDER]]


@pytest.mark.key("defaults.preload")
def test_models_to_preload_are_loaded_without_a_request():
    """At start."""

    async def story(one):
        await asyncio.sleep(5)
        return residents(one)

    assert compare(story, "defaults.preload", [[], [SMALL], [MIDDLE]]) == [[], [SMALL], [MIDDLE]]


async def loaded_after(one, wait_s, **more):
    """Whether the small model is still loaded `wait_s` seconds after its last request."""
    await one.ask(hello(SMALL, **more))
    await asyncio.sleep(wait_s)
    return residents(one) == [SMALL]


@pytest.mark.key("defaults.keep_alive_s")
def test_an_idle_model_stays_for_keep_alive_s_where_its_request_does_not_say():
    """Eight seconds later."""
    assert compare_small(lambda one: loaded_after(one, 8), "defaults.keep_alive_s", [4, 12]) == [False, True]


@pytest.mark.key("defaults.max_keep_alive_s")
def test_no_request_keeps_a_model_longer_than_max_keep_alive_s():
    """Also not one that asks for it to stay."""

    async def story(one):
        return await loaded_after(one, 8, keep_alive=-1)

    assert compare_small(story, "defaults.max_keep_alive_s", [None, 4]) == [True, False]


@pytest.mark.key("defaults.max_keep_alive_s")
def test_a_request_that_does_not_say_keeps_a_model_no_longer_than_max_keep_alive_s_either():
    """The default of five minutes is more than that."""

    async def story(one):
        return await loaded_after(one, 8)

    assert compare_small(story, "defaults.max_keep_alive_s", [None, 4]) == [True, False]


@pytest.mark.key("defaults.conversations")
def test_only_so_many_conversations_keep_their_model():
    """Two by turns, when the chain was moved down for a third one."""

    async def story(one):
        async def turn(text):
            body = {"model": BIG, "messages": [{"role": "user", "content": f"[[tokens=4]] {text}"}], "stream": False}
            return (await one.ask(body, "/api/chat")).served

        assert [await turn("one"), await turn("two")] == [BIG, BIG]
        await one.ask({"model": BIG, "keep_alive": 0})
        assert (await served_after(one, 1))[1] == MIDDLE
        return await turn("one")

    config = {**CHAIN, "defaults.upgrade_after_s": 600}
    assert compare(story, "defaults.conversations", [2, 1, 0], config) == [BIG, MIDDLE, MIDDLE]
