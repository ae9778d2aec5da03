"""OLLAMA_MAX_LOADED_MODELS, by what Ollama unloads."""

import asyncio

from router.backend.loaded_limit import LIMIT_S, SIGNS
from router.telemetry import Notified
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine
from tests.backend.scene import play
from tests.core.facts import facts_of

TINY = facts_of("tiny:1b", 1)
ALL = (TINY, SMALL, MIDDLE)


class Limited(MemoryMachine):
    """Keeps only `limit` models loaded: the oldest goes when another one comes."""

    limit = 1

    async def load(self, name, *more, **options):
        while len([one for one in self.rows if one != name]) >= self.limit:
            self.drop(next(one for one in self.rows if one != name))
        await super().load(name, *more, **options)


def said(scene):
    return [event.message for event in scene.heard.of(Notified) if "OLLAMA_MAX_LOADED_MODELS" in event.message]


async def load(scene, *models):
    """Load models that would fit beside each other; how many residents each plan evicts."""
    evicted = []
    for facts in models:
        target = scene.target(facts, num_ctx=8192)
        evicted.append(len(target.plan.evict))
        await scene.backend.residency.switch(target)
    return evicted


def test_a_limit_that_two_loads_have_shown_is_planned_with_and_said_once():
    """From then on the router makes room itself. After an hour it is tried again."""

    async def story(scene):
        assert await load(scene, TINY, *[SMALL, TINY][:SIGNS]) == [0, 0, 0]
        assert await load(scene, SMALL, MIDDLE) == [1, 1]
        (text,) = said(scene)
        assert "at most 1 model loaded" in text
        assert scene.backend.residency.loaded_limit.notes() == [text]
        await asyncio.sleep(LIMIT_S)
        await scene.backend.world.refresh_fresh()
        assert await load(scene, TINY) == [0]
        assert len(said(scene)) == 1

    play(story, Limited(*ALL))


def test_a_limit_of_two_is_two():
    """Each load shows how many stay."""
    machine = Limited(*ALL)
    machine.limit = 2

    async def story(scene):
        assert await load(scene, TINY, SMALL, MIDDLE, TINY) == [0, 0, 0, 0]
        assert await load(scene, SMALL) == [1]
        assert "at most 2 models loaded" in said(scene)[0]

    play(story, machine)


def test_with_auto_off_a_limit_is_only_said():
    """The configuration alone counts."""

    async def story(scene):
        assert await load(scene, TINY, SMALL, TINY, SMALL) == [0, 0, 0, 0]
        assert "server.auto is false" in said(scene)[0]

    play(story, Limited(*ALL), {"backends.local.server.auto": False})


def test_what_the_router_unloads_itself_or_was_loaded_together_before_shows_no_limit():
    """Nor does a load for which it made room, as for one that does not fit beside."""

    async def story(scene):
        assert await load(scene, BIG, MIDDLE, BIG, MIDDLE, SMALL) == [0, 1, 1, 1, 0]
        assert said(scene) == []
        limit = scene.backend.residency.loaded_limit
        for _ in range(2 * SIGNS):
            limit.note(1, has_left=True)
        assert said(scene) == []

    play(story, MemoryMachine(*ALL, BIG))


def test_a_resident_that_leaves_during_a_load_because_its_time_was_over_shows_no_limit():
    """As with clients that ask for `keep_alive: 0` and use two models in turn."""

    async def story(scene):
        await load(scene, TINY)
        for gone, facts in ((TINY, SMALL), (SMALL, TINY)) * SIGNS:
            scene.backend.world.residents.go(scene.resident(gone), asyncio.get_running_loop().time())
            assert await load(scene, facts) == [0]
        assert (said(scene), scene.backend.residency.loaded_limit.count) == ([], 0)

    play(story, Limited(*ALL))


def test_a_limit_is_forgotten_with_the_rest():
    """By the operator, and when Ollama restarts."""

    async def story(scene):
        limit = scene.backend.residency.loaded_limit
        for forget in (lambda: scene.backend.forget(None), None):
            await load(scene, TINY, SMALL, TINY, SMALL)
            assert limit.count == 1
            if forget is not None:
                await forget()
            else:
                scene.backend._restarted(lambda: None)
            assert (limit.count, limit.notes()) == (0, [])

    play(story, Limited(*ALL))


def test_a_resident_whose_lease_may_have_ended_during_a_load_shows_no_limit():
    """No lease is renewed during a switch, and a request that was passed on may have named its own."""

    async def story(scene):
        await load(scene, TINY)
        for gone, facts in ((TINY, SMALL), (SMALL, TINY)) * SIGNS:
            scene.resident(gone).idle_since_s -= scene.resident(gone).lease_s
            assert await load(scene, facts) == [0]
        assert (said(scene), scene.backend.residency.loaded_limit.count) == ([], 0)

    play(story, Limited(*ALL))


def test_a_configured_limit_that_is_too_high_is_corrected():
    """A lower one than loads show is the operator's wish."""

    async def story(scene):
        return await load(scene, TINY, SMALL, TINY, SMALL, TINY)

    assert play(story, Limited(*ALL), {"backends.local.server.max_loaded_models": 5}) == [0, 0, 0, 1, 1]
    assert play(story, MemoryMachine(*ALL), {"backends.local.server.max_loaded_models": 1}) == [0, 1, 1, 1, 1]
