"""`chains`: what may serve a model, and what one chain does otherwise than the defaults."""

import asyncio

import pytest

from router.core.units import MIB
from tests.config.keys.play import BIG, HUGE, HUGE_Q2, MIDDLE, SMALL, chat, contexts, explained, hello, play, residents

TEAM = "team"
"""A name of our own: no model is called so."""


def compare_chains(story, chains, config=None, *, name=TEAM, **sim):
    """What `story` returns for each of `chains`, all for the same name."""
    return [play(story, {**(config or {}), "chains": {name: chain}}, **sim) for chain in chains]


@pytest.mark.key("chains.*.variants")
def test_a_chain_lists_its_variants_or_derives_them_from_what_is_installed():
    """In their order; `quantizations` are those of the asked model, `auto` adds its smaller relatives."""

    async def story(one):
        return [row["model"] for row in (await explained(one, HUGE))["variants"]]

    found = compare_chains(
        story,
        [[HUGE, HUGE_Q2, SMALL], "quantizations", "auto"],
        {"defaults.auto_chains": "off"},
        name=HUGE,
        models=(HUGE, HUGE_Q2, MIDDLE, SMALL),
        cards=(2048,),
    )
    assert found == [[HUGE, HUGE_Q2, SMALL], [HUGE, HUGE_Q2], [HUGE, HUGE_Q2, MIDDLE, SMALL]]


@pytest.mark.key("chains.*.variants.*.model")
def test_the_model_of_a_variant_serves():
    """The first that fits."""

    async def story(one):
        return (await one.ask(hello(TEAM))).served

    assert compare_chains(story, [[{"model": MIDDLE}, SMALL], [{"model": SMALL}, MIDDLE]]) == [MIDDLE, SMALL]


@pytest.mark.key("chains.*.variants.*.num_ctx")
def test_a_variant_runs_at_its_num_ctx_at_the_largest_that_fits_or_at_the_defaults():
    """131072 is the most that the model can; a request that names a context goes before all three."""

    async def story(one):
        await one.ask(hello(TEAM))
        found = contexts(one)
        await one.ask(hello(TEAM, keep_alive=0))
        await asyncio.sleep(1)
        await one.ask(hello(TEAM, options={"num_ctx": 16384}))
        return [*found, *contexts(one)]

    chains = [[{"model": SMALL, "num_ctx": num_ctx}] for num_ctx in (None, 10240, "max")]
    assert compare_chains(story, chains) == [[32768, 16384], [10240, 16384], [131072, 16384]]


@pytest.mark.key("chains.*.nothing_fits")
def test_a_chain_has_its_own_rule_for_when_nothing_fits():
    """It goes before the default, which is to refuse."""

    async def story(one):
        return (await one.ask(hello(TEAM))).status

    chains = [{"variants": [BIG], "nothing_fits": rule} for rule in (None, "passthrough")]
    assert compare_chains(story, chains, cards=(8192,)) == [503, 200]


@pytest.mark.key("chains.*.upgrade")
def test_a_chain_has_its_own_rule_for_upgrades():
    """It goes before the default, which is to go up with the next request."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await asyncio.sleep(1.5)
        await one.ask(hello(TEAM))
        one.sim.cards.set_foreign(0, 0)
        await asyncio.sleep(8)
        return residents(one), (await one.ask(hello(TEAM))).served

    chains = [{"variants": [BIG, SMALL], "upgrade": rule} for rule in (None, "idle", "never")]
    found = compare_chains(story, chains, {"defaults.upgrade_after_s": 2})
    assert found == [([SMALL], BIG), ([BIG], BIG), ([SMALL], SMALL)]


@pytest.mark.key("chains.*.prefer")
def test_a_chain_has_its_own_preference():
    """It goes before the default, which is the bigger variant once its memory has been free for a while."""

    async def story(one):
        await one.ask(hello(SMALL))
        return (await one.ask(hello(TEAM))).served

    chains = [{"variants": [BIG, SMALL], "prefer": prefer} for prefer in (None, "speed", "quality")]
    assert compare_chains(story, chains) == [BIG, SMALL, BIG]


@pytest.mark.key("chains.*.preload")
def test_a_chain_to_preload_is_loaded_without_a_request():
    """Its first variant that fits."""

    async def story(one):
        await asyncio.sleep(5)
        return residents(one)

    chains = [{"variants": [BIG, SMALL], "preload": preload} for preload in (False, True)]
    assert compare_chains(story, chains, cards=(8192,)) == [[], [SMALL]]


def test_a_variants_num_ctx_above_its_maximum_is_cut_and_a_clients_is_a_demand():
    """A list carried over from another proxy gives each variant the same number; on both APIs, with the same runner."""
    names = ("qwen3:30b-a3b-q8_0", "qwen3:14b", "qwen3:8b")

    async def story(one):
        replies = [await one.ask(hello(TEAM)), await one.ask(chat(TEAM), "/v1/chat/completions")]
        assert [(reply.status, reply.served) for reply in replies] == [(200, "qwen3:14b")] * 2
        assert contexts(one) == [40960]
        assert one.loads == ["qwen3:14b"]
        asked = await one.ask(hello(TEAM, options={"num_ctx": 100000}))
        assert asked.status == 503

    play(story, {"chains": {TEAM: [{"model": name, "num_ctx": 262144} for name in names]}}, models=names)
