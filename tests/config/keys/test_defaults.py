"""`defaults`: chains, contexts, what answers say, and what stays loaded."""

import asyncio

import pytest

from router.core.units import MIB
from tests.config.keys.play import (
    ALONE,
    BIG,
    CHAIN,
    EMBEDDER,
    HUGE,
    HUGE_Q2,
    MIDDLE,
    OTHER,
    SMALL,
    chat,
    compare,
    compare_small,
    contexts,
    explained,
    hello,
    residents,
    seen,
    state,
)


@pytest.mark.key("defaults.auto_chains")
def test_auto_chains_says_which_models_may_serve_a_model_without_a_chain():
    """Other quantizations and smaller relatives, other quantizations alone, or nothing else."""

    async def story(one):
        return (await one.ask(hello(HUGE))).served

    key, values, models = "defaults.auto_chains", ["auto", "quantizations", "off"], (HUGE, HUGE_Q2, MIDDLE)
    assert compare(story, key, values, models=models) == [MIDDLE, "", ""]
    assert compare(story, key, values, models=models, cards=(32768,)) == [HUGE_Q2, HUGE_Q2, ""]


@pytest.mark.key("defaults.nothing_fits")
def test_nothing_fits_refuses_waits_spills_or_passes_on():
    """What is let through runs at the context of its chain, or at Ollama's own where it is passed on unchanged."""

    async def story(one):
        asked = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(8)
        if not asked.done():
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return "waits"
        return (await asked).status, contexts(one)

    chain = {"chains": {BIG: [{"model": BIG, "num_ctx": 8192}]}}
    found = compare(
        story, "defaults.nothing_fits", ["refuse", "wait", "allow_partial", "passthrough"], chain, cards=(8192,)
    )
    assert found == [(503, []), "waits", (200, [8192]), (200, [4096])]


async def loaded_context(one):
    """The context at which the small model is loaded for a request that names none."""
    assert (await one.ask(hello(SMALL))).status == 200
    return contexts(one)


@pytest.mark.key("defaults.num_ctx")
def test_num_ctx_is_the_largest_context_of_a_load_that_names_none():
    """Much more would fit."""
    assert compare_small(loaded_context, "defaults.num_ctx", [8192, 16384]) == [[8192], [16384]]


@pytest.mark.key("defaults.min_num_ctx")
def test_a_variant_that_only_fits_below_min_num_ctx_is_passed_over():
    """On a card where the first variant has room for a small context only."""

    async def story(one):
        return (await one.ask(hello(MIDDLE))).served

    chain = {"chains": {MIDDLE: [MIDDLE, SMALL]}}
    assert compare(story, "defaults.min_num_ctx", [4096, 16384], chain, cards=(7900,)) == [MIDDLE, SMALL]


@pytest.mark.key("defaults.num_ctx_steps")
def test_a_named_context_is_rounded_up_to_num_ctx_steps():
    """So that clients which name another one with each request reload seldom."""

    async def story(one):
        await one.ask(hello(SMALL, options={"num_ctx": 8300}))
        return contexts(one)

    assert compare_small(story, "defaults.num_ctx_steps", [256, 2048]) == [[8448], [10240]]


@pytest.mark.key("defaults.max_num_ctx")
def test_no_request_gets_more_context_than_max_num_ctx():
    """Also not one that names it."""

    async def story(one):
        await one.ask(hello(SMALL, options={"num_ctx": 65536}))
        return contexts(one)

    assert compare_small(story, "defaults.max_num_ctx", [None, 16384]) == [[65536], [16384]]


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
@pytest.mark.xfail(raises=AssertionError, reason="every switch that unloads something spends the budget of upgrades")
def test_switches_that_are_no_upgrades_do_not_spend_swaps_per_minute():
    """Two models that share no chain take turns; then the memory for an upgrade comes back."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await asyncio.sleep(1.5)
        for model in (BIG, OTHER):
            await one.ask(hello(model, options={"num_ctx": 4096}))
        return (await served_after(one, 3))[1], len(one.loads)

    config = {**CHAIN, "defaults.upgrade_after_s": 1}
    assert compare(story, "defaults.swaps_per_minute", [9, 1], config) == [(BIG, 4), (BIG, 4)]


@pytest.mark.key("defaults.response_model")
def test_answers_name_the_model_that_served_or_the_one_that_was_asked_for():
    """In the body."""

    async def story(one):
        return (await one.ask(hello(HUGE))).served

    chain = {"chains": {HUGE: [HUGE, SMALL]}}
    found = compare(story, "defaults.response_model", ["served", "requested"], chain, models=(HUGE, SMALL))
    assert found == [SMALL, HUGE]


@pytest.mark.key("defaults.derived_tags")
def test_v1_requests_run_at_the_decided_context_or_without_derived_tags_at_ollamas_own():
    """8192 is the router's default here, 32768 the automatic context of a card of 24 GB."""

    async def story(one):
        assert (await one.ask(chat(SMALL), "/v1/chat/completions")).status == 200
        return contexts(one), len(seen(one, "/api/create"))

    config = {**ALONE, "defaults.num_ctx": 8192}
    assert compare_small(story, "defaults.derived_tags", [True, False], config) == [([8192], 1), ([32768], 0)]


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


@pytest.mark.key("defaults.safety_mib")
def test_safety_is_kept_free_on_top_of_the_estimate():
    """Each further MiB of it is a MiB more that must be free; with too much of it nothing fits."""

    async def story(one):
        need = (await explained(one, SMALL))["variants"][0]["need_bytes"]
        return need, (await one.ask(hello(SMALL))).status

    (least, _), (more, ok), (_, refused) = compare_small(story, "defaults.safety_mib", [0, 1000, 30000])
    assert (more - least, ok, refused) == (1000 * MIB, 200, 503)


@pytest.mark.key("defaults.safety_mib")
@pytest.mark.xfail(raises=AssertionError, reason="what was learned of a model replaces it")
def test_safety_is_kept_free_of_a_model_that_was_loaded_before_as_well():
    """Its second load needs as much more memory as its first one."""

    async def story(one):
        await one.ask(hello(SMALL))
        await one.ask({"model": SMALL, "keep_alive": 0})
        await asyncio.sleep(2)
        return (await explained(one, SMALL))["variants"][0]["need_bytes"]

    least, more = compare_small(story, "defaults.safety_mib", [0, 1000])
    assert more - least == 1000 * MIB


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
@pytest.mark.xfail(raises=AssertionError, reason="only a keep_alive that the request names is limited")
def test_a_request_that_does_not_say_keeps_a_model_no_longer_than_max_keep_alive_s_either():
    """The default of five minutes is more than that."""

    async def story(one):
        return await loaded_after(one, 8)

    assert compare_small(story, "defaults.max_keep_alive_s", [None, 4]) == [True, False]
