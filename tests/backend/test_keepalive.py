"""Clients' keep_alive: what it means, what ps shows of it, and who is unloaded or renewed when."""

import asyncio
import math
from datetime import UTC, datetime

import pytest

from router.backend.keepalive import NEVER
from router.errors import UpstreamError
from tests.backend.machine import BIG, EMBEDDER, MIDDLE, SMALL, MemoryMachine
from tests.backend.scene import UNIX_S, play

ALL = (BIG, MIDDLE, SMALL, EMBEDDER)
DEFAULT_S, LEASE_S = 300.0, 330.0


def watched(story, options=None, machine=None):
    """Run `story` on a backend that is watched."""
    play(story, machine or MemoryMachine(*ALL), options, is_watched=True)


async def is_loaded_after(scene, facts, seconds):
    await asyncio.sleep(seconds)
    return facts.name in scene.machine.rows


def shown(scene, facts):
    """Return the shown expiry in seconds from now, None if the upstream's own is right."""
    expiry = scene.backend.keepalive.expiry(scene.resident(facts))
    return None if expiry is None else expiry.timestamp() - UNIX_S - asyncio.get_running_loop().time()


def test_a_model_goes_when_it_was_idle_for_the_default_time():
    """Counted from the end of its last request; Ollama's own lease is longer."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        await asyncio.sleep(100)
        scene.backend.world.residents.enter(tracked.weights)
        await asyncio.sleep(400)
        scene.backend.leave(tracked)
        assert await is_loaded_after(scene, SMALL, DEFAULT_S - 1)
        assert not await is_loaded_after(scene, SMALL, 3)

    watched(story)


@pytest.mark.parametrize(
    ("asked", "stays_s"), [(0.0, 0.0), (10.0, 10.0), (None, DEFAULT_S)], ids=["0", "a duration", "nothing"]
)
def test_what_a_client_names_counts_from_its_last_request_on(asked, stays_s):
    """0 unloads when idle; without a name the default holds."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.keepalive.apply(tracked, asked)
        if stays_s:
            assert await is_loaded_after(scene, SMALL, stays_s - 3)
        assert not await is_loaded_after(scene, SMALL, 5)

    watched(story)


def test_a_request_without_keep_alive_leaves_what_an_earlier_one_named():
    """As in Ollama: the last one that was named counts."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        for asked in (10.0, None):
            scene.backend.keepalive.apply(tracked, asked)
        assert tracked.client_keep_alive_s == 10
        scene.backend.keepalive.apply(tracked, -1.0)
        assert tracked.client_keep_alive_s == math.inf

    watched(story)


def test_no_client_keeps_a_model_longer_than_the_operator_allows():
    """Neither for ages nor indefinitely."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        for asked in (-1.0, 5000.0, math.inf):
            scene.backend.keepalive.apply(tracked, asked)
            assert tracked.client_keep_alive_s == 20
        assert not await is_loaded_after(scene, SMALL, 22)

    watched(story, {"defaults.max_keep_alive_s": 20})


def test_a_pinned_model_outlives_ollamas_lease_by_renewals():
    """One at half of each lease, with its own options, and not more often."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.keepalive.apply(tracked, -1.0)
        assert await is_loaded_after(scene, SMALL, LEASE_S / 2 - 2)
        assert len(scene.machine.named("load")) == 1
        assert await is_loaded_after(scene, SMALL, 10)
        assert len(scene.machine.named("load")) == 2
        await asyncio.sleep(LEASE_S)
        assert len(scene.machine.named("load")) == 4
        assert len(set(scene.machine.named("load"))) == 1

    watched(story)


def test_renewals_are_remembered_of_what_is_loaded():
    """Not of all models that ever were."""

    async def story(scene):
        for facts in (SMALL, MIDDLE):
            tracked = await scene.make_resident(facts)
            scene.backend.keepalive.apply(tracked, -1.0)
            await asyncio.sleep(200)
            await scene.backend.residency.unloading.unload(tracked)
        assert len(scene.backend.keepalive._renewed_at_s) == 1

    watched(story)


def test_a_keep_alive_within_ollamas_lease_needs_no_renewal():
    """The lease outlasts it."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.keepalive.apply(tracked, 320.0)
        assert await is_loaded_after(scene, SMALL, 318)
        assert len(scene.machine.named("load")) == 1

    watched(story)


def test_a_kept_model_stays_and_a_strangers_model_is_left_to_ollama():
    """The operator's word, and nobody's."""

    async def story(scene):
        await scene.make_resident(SMALL)
        scene.machine.put(MIDDLE)
        assert await is_loaded_after(scene, SMALL, 2 * DEFAULT_S)
        assert MIDDLE.name in scene.machine.rows
        assert scene.machine.named("unload") == []
        assert (scene.backend.keepalive.expiry(scene.resident(SMALL)), shown(scene, MIDDLE)) == (NEVER, None)

    watched(story, {"defaults.keep": [SMALL.name]})


def test_a_busy_model_is_neither_unloaded_nor_renewed():
    """Its requests keep it."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.keepalive.apply(tracked, 0.0)
        scene.backend.world.residents.enter(tracked.weights)
        assert await is_loaded_after(scene, SMALL, 1000)
        assert (scene.machine.named("unload"), len(scene.machine.named("load"))) == ([], 1)
        scene.backend.leave(tracked)
        assert not await is_loaded_after(scene, SMALL, 2)

    watched(story)


def test_nothing_is_unloaded_or_renewed_while_a_switch_runs():
    """Memory is counted then."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        machine.load_s = 50.0
        waiting = asyncio.create_task(scene.backend.line.wait("key", lambda: scene.decide(MIDDLE), 0.0))
        await asyncio.sleep(1)
        scene.backend.keepalive.apply(tracked, 0.0)
        assert await is_loaded_after(scene, SMALL, 40)
        await waiting
        assert not await is_loaded_after(scene, SMALL, 2)

    watched(story, machine=machine)


def test_a_model_that_goes_by_itself_while_another_is_unloaded_is_not_unloaded():
    """The entry that was about to be next is an old one by then."""
    machine = MemoryMachine(*ALL)
    machine.stubborn.add(SMALL.name)

    async def story(scene):
        entries = [await scene.make_resident(facts) for facts in (SMALL, MIDDLE)]
        for tracked in entries:
            scene.backend.keepalive.apply(tracked, 0.0)
        await asyncio.sleep(1)
        machine.drop(MIDDLE.name)
        machine.stubborn.clear()
        assert not await is_loaded_after(scene, SMALL, 5)
        assert set(machine.named("unload")) == {(SMALL.name,)}

    watched(story, machine=machine)


def test_an_ollama_that_is_away_for_a_moment_does_not_end_the_watch():
    """What has expired goes when it is back."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        scene.backend.keepalive.apply(await scene.make_resident(SMALL), 0.0)
        machine.trouble["unload"] = UpstreamError("away")
        assert await is_loaded_after(scene, SMALL, 5)
        machine.trouble.clear()
        assert not await is_loaded_after(scene, SMALL, 15)

    watched(story, machine=machine)


def test_ps_shows_when_a_model_will_go():
    """From its last request on; nothing for what is not loaded."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        assert shown(scene, SMALL) == pytest.approx(DEFAULT_S)
        await asyncio.sleep(100)
        scene.backend.keepalive.apply(tracked, 600.0)
        assert shown(scene, SMALL) == pytest.approx(600 - 100)
        assert scene.backend.keepalive.expiry(None) is None
        assert datetime.now(UTC) < NEVER

    watched(story)


@pytest.mark.parametrize(
    ("team", "asked", "stays_s"),
    [
        ("b", 0.0, DEFAULT_S),
        ("b", 30.0, DEFAULT_S),
        ("b", 2 * DEFAULT_S, 2 * DEFAULT_S),
        ("a", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_no_team_ends_sooner_what_another_one_uses(team, asked, stays_s):
    """It may keep it for longer; its own models, and all of them for an admin, end as it says."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.leave(scene.backend.world.residents.enter(tracked.weights, "a", scene.backend.now()))
        scene.backend.keepalive.apply(tracked, asked, team)
        assert await is_loaded_after(scene, SMALL, max(0.0, stays_s - 3)) or not stays_s
        assert not await is_loaded_after(scene, SMALL, 5)

    watched(story)


def test_a_team_that_has_not_used_it_within_its_keep_alive_does_not_count():
    """Then whoever uses it now decides."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        for team, asked in (("a", 20.0), ("b", 0.0)):
            scene.backend.leave(scene.backend.world.residents.enter(tracked.weights, team, scene.backend.now()))
            scene.backend.keepalive.apply(tracked, asked, team)
            await asyncio.sleep(15)
        assert SMALL.name in scene.machine.rows
        scene.backend.keepalive.apply(tracked, 0.0, "b")
        assert await is_loaded_after(scene, SMALL, 0.1)
        await asyncio.sleep(4.9)
        assert not await is_loaded_after(scene, SMALL, 3)

    watched(story)
