"""Requests that wait at a backend of several: they enter in turn, as at a single one."""

from __future__ import annotations

import asyncio

import pytest

from ollama_simulator.machine.spec import Speeds
from router.core.decision.fleet.rank import rank
from router.core.ollama.names import key_of
from router.core.units import MIB
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, hello
from tests.routing.counting import counted
from tests.routing.fleet.stage import play

ONE_HAS_IT = {"big": (BIG,), "other": ()}


def test_no_runner_gets_more_requests_than_it_has_slots():
    """Each enters its resident in the moment of its turn: otherwise the line takes its slot for free."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        (place,) = [place for place in one.router.router.routes.places if place.name == "big"]
        (resident,) = place.backend.world.residents.values()
        most, is_over = 0, False

        async def watch():
            nonlocal most
            while not is_over:
                most = max(most, resident.in_flight)
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        found = await asyncio.gather(*(one.ask(hello(BIG, tokens=50)) for _ in range(12)))
        is_over = True
        await watching
        assert [status for status, *_ in found] == [200] * 12
        assert most <= place.backend.line.slots.room(resident)
        assert (place.backend.line.depth, resident.in_flight) == (0, 0)

    play(story, {"big": (24564,), "other": (24564,)}, {"defaults.auto_chains": "off"}, models=ONE_HAS_IT)


def test_a_request_that_waits_goes_where_it_can_be_served_sooner():
    """Another card becomes free while it waits for a slot of the first: it leaves nothing behind there."""

    async def story(one):
        one.sims["b"].cards.set_foreign(0, 20000 * MIB)
        await asyncio.sleep(3)
        await one.ask(hello(BIG, tokens=1))
        asked = [asyncio.create_task(one.ask(hello(BIG, tokens=3000))) for _ in range(6)]
        await asyncio.sleep(2)
        one.sims["b"].cards.set_foreign(0, 0)
        found = await asyncio.gather(*asked)
        assert [status for status, *_ in found] == [200] * 6
        assert {backend for _, backend, _ in found} == {"a", "b"}
        assert len(one.ended()) == 7
        for place in one.router.router.routes.places:
            assert (place.backend.line.depth, [r.in_flight for r in place.backend.world.residents.values()]) == (0, [0])

    play(story, {"a": (24564,), "b": (24564,)}, {"defaults.auto_chains": "off"})


def test_a_request_stays_where_its_load_is_under_way():
    """Loads were measured on the tower, and seem quicker there, but a second one would evict an idle model."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        status, backend, _ = await one.ask(hello(MIDDLE, tokens=1))
        assert (status, backend) == (200, "desk")
        await asyncio.sleep(5)
        assert one.loads == [("tower", BIG), ("desk", MIDDLE)]
        assert one.residents("tower") == [BIG]

    speeds = Speeds(load_mib_per_s=3000, tokens_per_s=100, cpu_tokens_per_s=4)
    models = {"desk": (MIDDLE, SMALL), "tower": (BIG, MIDDLE, SMALL)}
    play(story, {"desk": (12288,), "tower": (24564,)}, {"defaults.auto_chains": "off"}, models=models, speeds=speeds)


def test_requests_that_wait_alike_are_ranked_once_a_second_together():
    """Each by itself, hundreds of them at dozens of backends would take a good part of the loop's time."""

    async def story(one):
        one.sims["b"].cards.set_foreign(0, 20000 * MIB)
        await asyncio.sleep(3)
        await one.ask(hello(BIG, tokens=1))
        asked = [asyncio.create_task(one.ask(hello(BIG, tokens=2000))) for _ in range(16)]
        await asyncio.sleep(2)
        with counted(rank) as calls:
            await asyncio.sleep(10)
        assert 8 <= len(calls) <= 30
        one.sims["b"].cards.set_foreign(0, 0)
        assert {backend for _, backend, _ in await asyncio.gather(*asked)} >= {"a", "b"}

    play(story, {"a": (24564,), "b": (24564,)}, {"defaults.auto_chains": "off"})


SLOW = Speeds(load_mib_per_s=500, tokens_per_s=100, cpu_tokens_per_s=4)
TWO = {"desk": (MIDDLE, SMALL), "tower": (BIG, MIDDLE, SMALL)}


def test_a_new_request_for_what_is_being_loaded_joins_it_where_no_load_was_measured():
    """The speed of loads that was measured on the tower counts for the desk as well."""

    async def story(one):
        await one.ask(hello(BIG, tokens=1))
        asked = [asyncio.create_task(one.ask(hello(MIDDLE, tokens=1)))]
        await asyncio.sleep(0.5)
        asked.append(asyncio.create_task(one.ask(hello(MIDDLE, tokens=1))))
        assert [found[:2] for found in await asyncio.gather(*asked)] == [(200, "desk")] * 2
        assert one.loads == [("tower", BIG), ("desk", MIDDLE)]

    speeds = Speeds(load_mib_per_s=3000, tokens_per_s=100, cpu_tokens_per_s=4)
    cards = {"desk": (12288,), "tower": (24564,)}
    play(story, cards, {"defaults.auto_chains": "off"}, models=TWO, speeds=speeds)


@pytest.mark.parametrize(("after_s", "others"), [(1.0, ["tower"]), (6.0, [])])
def test_of_a_load_that_is_under_way_only_the_rest_is_waited_for(after_s, others):
    """Near its end a quicker load elsewhere saves nothing."""

    async def story(one):
        for place in one.router.router.routes.places:
            facts = place.backend.world.catalog[key_of(MIDDLE)]
            took_s = {"desk": 10.0, "tower": 4.0}[place.name]
            place.backend.residency.load_times.loaded(facts.weights, facts.size_bytes, took_s)
        first = asyncio.create_task(one.ask(hello(MIDDLE, tokens=1)))
        await asyncio.sleep(after_s)
        assert (await one.ask(hello(MIDDLE, tokens=1)))[0] == 200
        assert (await first)[:2] == (200, "desk")
        assert [backend for backend, _ in one.loads] == ["desk", *others]

    play(story, {"desk": (12288,), "tower": (24564,)}, {"defaults.auto_chains": "off"}, models=TWO, speeds=SLOW)


def test_a_request_leaves_a_line_in_which_it_has_waited_for_longer_than_a_load_elsewhere_takes():
    """The load before its own hangs: what was estimated for it, a moment, says nothing any more."""

    async def story(one):
        one.sims["desk"].cards.set_foreign(0, 6000 * MIB)
        await asyncio.sleep(3)
        for place in one.router.router.routes.places:
            facts = place.backend.world.catalog[key_of(MIDDLE)]
            took_s = {"tower": 0.5, "desk": 5.0}[place.name]
            place.backend.residency.load_times.loaded(facts.weights, facts.size_bytes, took_s)
        one.sims["tower"].faults.add("slow", route="/api/generate", model=OTHER, delay_s=60.0)
        hung = asyncio.create_task(one.ask(hello(OTHER, tokens=1)))
        await asyncio.sleep(0.5)
        one.sims["desk"].cards.set_foreign(0, 0)
        began_s = asyncio.get_running_loop().time()
        status, backend, _ = await one.ask(hello(MIDDLE, tokens=1))
        took_s = asyncio.get_running_loop().time() - began_s
        hung.cancel()
        return status, backend, took_s

    cards, models = {"desk": (12288,), "tower": (24564,)}, {"desk": (MIDDLE, SMALL), "tower": (OTHER, MIDDLE)}
    status, backend, took_s = play(story, cards, {"defaults.auto_chains": "off"}, models=models)
    assert (status, backend) == (200, "desk")
    assert took_s < 20
