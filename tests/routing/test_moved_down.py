"""Nobody is moved to a smaller variant by a reading of free memory that is older than the request."""

import asyncio

import pytest

from router.backend.cards import LATELY_S, LOOK_S
from router.core.units import MIB
from router.routing.outcomes import Blocked
from tests.backend.machine import BIG as LARGE
from tests.backend.machine import SMALL as LITTLE
from tests.backend.machine import MemoryMachine
from tests.backend.scene import took_s
from tests.config.keys.play import BIG, CHAIN, MIDDLE, hello, play
from tests.core.facts import gpu_of
from tests.routing.requests_by_hand import Replies
from tests.routing.scene import routed

ALONE = {"defaults.auto_chains": "off"}
TEAM = {**ALONE, "chains": {"team": [LARGE.name, LITTLE.name]}}


def test_memory_that_has_just_come_back_is_used_by_the_next_request():
    """Also where the smaller variant is loaded, and served the same request a moment ago."""

    async def story(one):
        one.sim.cards.set_foreign(0, 12000 * MIB)
        await asyncio.sleep(1.5)
        for _ in range(2):
            assert (await one.ask(hello(BIG))).served == MIDDLE
        one.sim.cards.set_foreign(0, 0)
        assert (await one.ask(hello(BIG))).served == BIG

    play(story, CHAIN)


async def crowded(scene):
    """Load the small model beside others that hold most of the card, and let time go by since the last reading."""
    await scene.make_resident(LITTLE)
    scene.machine.foreign[0] = 20 << 30
    await scene.backend.world.refresh_fresh()
    await asyncio.sleep(2 * LATELY_S)


def blocked(scene, model="team"):
    """Attempt a new request; return what it has to await first, None if it is sent."""
    call = scene.call(model)
    found = scene.dispatcher.attempt(call, Replies())
    scene.dispatcher.leave(call)
    return found if isinstance(found, Blocked) else None


def test_one_reading_does_for_all_that_come_with_it():
    """However many requests there are, the probe is read a few times a second."""

    async def story(scene):
        await crowded(scene)
        found = blocked(scene)
        assert found.why == "reading"
        await found.until()
        assert blocked(scene) is None

    routed(story, MemoryMachine(LARGE, LITTLE), TEAM)


def test_a_request_that_is_not_short_of_memory_reads_nothing():
    """The first of the chain is loaded."""

    async def story(scene):
        await crowded(scene)
        assert blocked(scene, LITTLE.name) is None

    routed(story, MemoryMachine(LARGE, LITTLE), TEAM)


def test_a_variant_that_is_bigger_than_the_cards_is_no_reason_to_read():
    """No memory that comes back would hold it."""

    async def story(scene):
        await scene.make_resident(LITTLE)
        await asyncio.sleep(2 * LATELY_S)
        assert blocked(scene) is None

    routed(story, MemoryMachine(LARGE, LITTLE, cards=(gpu_of(0, 12),)), TEAM)


def test_a_probe_that_hangs_holds_a_request_up_for_a_moment():
    """Then it is served by what was read last."""

    async def story(scene):
        await crowded(scene)
        found = blocked(scene)
        scene.machine.probe.read = lambda **_: asyncio.sleep(60)
        took, _ = await took_s(found.until())
        assert took == pytest.approx(LOOK_S)

    routed(story, MemoryMachine(LARGE, LITTLE), TEAM)
