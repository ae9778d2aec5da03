"""`defaults`: who serves, with how much context, and what answers say."""

import asyncio

import pytest

from router.core.units import MIB
from tests.config.keys.play import (
    ALONE,
    BIG,
    HUGE,
    HUGE_Q2,
    MIDDLE,
    SMALL,
    chat,
    compare,
    compare_small,
    contexts,
    explained,
    hello,
    seen,
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
        one.sim.cards.set_foreign(0, 16000 * MIB)
        await asyncio.sleep(1)
        asked = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(8)
        if not asked.done():
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return "waits"
        return (await asked).status, contexts(one)

    chain = {"chains": {BIG: [{"model": BIG, "num_ctx": 8192}]}}
    found = compare(story, "defaults.nothing_fits", ["refuse", "wait", "allow_partial", "passthrough"], chain)
    assert found == [(503, []), "waits", (200, [8192]), (200, [32768])]


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


@pytest.mark.key("defaults.answer_tokens")
def test_a_context_has_room_for_an_answer_of_answer_tokens():
    """A request that may answer with any number of tokens gets the model that has that much context, and no more."""

    async def story(one):
        body = {**chat(HUGE), "max_tokens": 128000}
        return (await one.ask(body, "/v1/chat/completions")).served

    chain = {"chains": {HUGE: [BIG, SMALL]}}
    assert compare(story, "defaults.answer_tokens", [2048, 100000], chain) == [BIG, SMALL]


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


@pytest.mark.key("defaults.safety_mib")
def test_safety_is_kept_free_on_top_of_the_estimate():
    """Each further MiB of it is a MiB more that must be free; with too much of it nothing fits."""

    async def story(one):
        need = (await explained(one, SMALL))["variants"][0]["need_bytes"]
        return need, (await one.ask(hello(SMALL))).status

    (least, _), (more, ok), (_, refused) = compare_small(story, "defaults.safety_mib", [0, 1000, 30000])
    assert (more - least, ok, refused) == (1000 * MIB, 200, 503)


@pytest.mark.key("defaults.safety_mib")
def test_safety_is_kept_free_of_a_model_that_was_loaded_before_as_well():
    """Its second load needs as much more memory as its first one."""

    async def story(one):
        await one.ask(hello(SMALL))
        await one.ask({"model": SMALL, "keep_alive": 0})
        await asyncio.sleep(2)
        return (await explained(one, SMALL))["variants"][0]["need_bytes"]

    least, more = compare_small(story, "defaults.safety_mib", [0, 1000])
    assert more - least == 1000 * MIB
