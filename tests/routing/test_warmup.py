"""Loads without a request: preload, kept models, and upgrades at idle times."""

import asyncio

from router.core.units import MIB
from tests.routing.test_dispatch import BIG, CHAIN, MIDDLE, SMALL, hello, play, residents


def test_a_preloaded_model_is_resident_at_the_first_request():
    """`defaults.preload` loads it at start."""

    async def story(one):
        await asyncio.sleep(8)
        assert residents(one) == [SMALL]
        assert (await one.ask(hello(SMALL))).took_s < 1

    play(story, {"defaults.auto_chains": "off", "defaults.preload": [SMALL]})


def test_preload_of_a_chain_loads_its_first_variant_that_fits():
    """A chain may have `preload: true`."""

    async def story(one):
        await asyncio.sleep(10)
        assert residents(one) == [MIDDLE]

    chain = {"variants": ["llama3.3:70b-instruct-q4_K_M", MIDDLE, SMALL], "preload": True}
    play(story, {"chains": {"team/big:latest": chain}})


def test_preloaded_models_come_back_after_a_restart_of_ollama():
    """They are loaded again."""

    async def story(one):
        await asyncio.sleep(8)
        port = int(one.sim.url.rsplit(":", 1)[1])
        await one.sim.stop()
        await asyncio.sleep(5)
        await one.sim.start(port=port)
        await asyncio.sleep(15)
        assert (residents(one), one.loads) == ([SMALL], [SMALL, SMALL])

    play(story, {"defaults.auto_chains": "off", "defaults.preload": [SMALL]})


def test_a_kept_embedder_stays_while_chat_models_change():
    """Kept models are evicted last."""

    async def story(one):
        embed = {"model": "nomic-embed-text:v1.5", "input": "hi"}
        await one.ask(embed, "/api/embed")
        for name in ("qwen3:14b", MIDDLE, "qwen3:14b", MIDDLE):
            assert (await one.ask(hello(name, options={"num_ctx": 32768}))).status == 200
            assert (await one.ask(embed, "/api/embed")).status == 200
        assert (one.loads.count("nomic-embed-text:v1.5"), len(one.loads)) == (1, 5)

    play(story, {"defaults.auto_chains": "off", "defaults.keep": ["nomic-embed-text:v1.5"]})


def test_a_preload_after_a_crash_waits_for_the_memory_of_the_runner_that_died():
    """The driver shows it as taken for a while; a smaller variant would stay in the place of the biggest."""

    async def story(one):
        one.sim.cards.change(free_lag_s=6.0)
        await asyncio.sleep(15)
        assert residents(one) == [BIG]
        port = int(one.sim.url.rsplit(":", 1)[1])
        await one.sim.stop()
        await asyncio.sleep(2)
        await one.sim.start(port=port)
        await asyncio.sleep(15)
        assert (residents(one), one.loads) == ([BIG], [BIG, BIG])

    play(story, {"chains": {BIG: {"variants": [BIG, SMALL], "preload": True}}})


def test_an_idle_upgrade_needs_no_request():
    """`upgrade: idle`: when another program has released its memory, the bigger variant is loaded."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await one.router.router.backend.world.refresh_fresh()
        assert (await one.ask(hello(BIG))).served == MIDDLE
        one.sim.cards.set_foreign(0, 0)
        await asyncio.sleep(200)
        assert residents(one) == [BIG]

    play(story, {**CHAIN, "defaults.upgrade": "idle"})


def test_an_idle_upgrade_unloads_a_model_that_nobody_uses_any_more_and_none_that_is_in_use():
    """A model that was loaded to stay would otherwise hold the smaller variant in place for ever."""
    other = "qwen3:14b"

    async def story(one):
        one.sim.cards.set_foreign(0, 4000 * MIB)
        await one.router.router.backend.world.refresh_fresh()
        assert (await one.ask(hello(BIG, options={"num_ctx": 8192}))).served == MIDDLE
        for _ in range(2):
            await one.ask(hello(other, options={"num_ctx": 4096}, keep_alive=-1))
        assert sorted(residents(one)) == [MIDDLE, other]
        one.sim.cards.set_foreign(0, 0)
        await asyncio.sleep(60)
        before = sorted(residents(one))
        await asyncio.sleep(120)
        return before, residents(one)

    found = play(story, {**CHAIN, "defaults.upgrade": "idle"})
    assert found == ([MIDDLE, other], [BIG])


def test_with_upgrade_never_the_smaller_variant_stays():
    """`upgrade: never` keeps a loaded variant as long as it can serve."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await one.router.router.backend.world.refresh_fresh()
        await one.ask(hello(BIG))
        one.sim.cards.set_foreign(0, 0)
        await asyncio.sleep(120)
        assert (await one.ask(hello(BIG))).served == MIDDLE

    play(story, {**CHAIN, "defaults.upgrade": "never"})


def test_h6_free_memory_that_swings_around_a_threshold_causes_at_most_two_switches():
    """For five minutes another program takes and releases memory: no upgrade happens in between."""

    async def story(one):
        for turn in range(30):
            one.sim.cards.set_foreign(0, (3500 if turn % 2 else 0) * MIB)
            await asyncio.sleep(5)
            assert (await one.ask(hello(BIG, options={"num_ctx": 8192}))).status == 200
            await asyncio.sleep(5)
        assert len(one.loads) <= 3

    play(story, CHAIN)
