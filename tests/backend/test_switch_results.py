"""Switches that end without their model: what is reported, and what is left as it was."""

import pytest

from router.backend.switches import SwitchResult
from router.core.units import GIB
from router.errors import LoadFailed, UpstreamError
from router.telemetry import Switched
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.scene import play

ALL = (BIG, MIDDLE, SMALL)


def switched(scene, target):
    return scene.backend.residency.switch(target)


def test_a_load_that_ollama_refuses_has_failed_and_its_words_are_kept_until_it_succeeds():
    """They are the answer of a request that nothing else can serve."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        machine.trouble["load"] = error = LoadFailed("llama runner terminated", status=500)
        residency = scene.backend.residency
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.FAILED
        assert residency.last_failure(weights_of(SMALL)) is error
        assert residency.last_failure(weights_of(BIG)) is None
        failed = scene.heard.of(Switched)[-1]
        assert (failed.phase, failed.error) == ("failed", "llama runner terminated")
        machine.trouble.clear()
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.DONE
        assert residency.last_failure(weights_of(SMALL)) is None

    play(story, machine)


@pytest.mark.parametrize("call", ["load", "unload"])
def test_an_ollama_that_goes_away_during_a_switch_is_no_fault_of_the_model(call):
    """Nothing is learned and no failure is kept."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        machine.trouble[call] = UpstreamError("connection refused")
        assert await switched(scene, target) is SwitchResult.AWAY
        assert scene.backend.residency.last_failure(weights_of(BIG)) is None
        assert weights_of(BIG) not in scene.backend.lessons.learned.by_weights
        assert scene.heard.of(Switched)[-1].error == "connection refused"

    play(story, machine)


def test_a_resident_that_is_busy_again_is_not_cut():
    """The plan was made before a request entered it."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        tracked = scene.backend.world.residents.enter(weights_of(MIDDLE))
        assert await switched(scene, target) is SwitchResult.MOVED
        assert scene.machine.named("unload") == []
        scene.backend.leave(tracked)
        assert await switched(scene, target) is SwitchResult.DONE

    play(story, MemoryMachine(*ALL))


def test_what_others_have_unloaded_meanwhile_is_not_unloaded_again():
    """The switch goes on."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        scene.machine.drop(MIDDLE.name)
        assert await switched(scene, target) is SwitchResult.DONE
        assert scene.machine.named("unload") == []

    play(story, MemoryMachine(*ALL))


def test_a_model_that_somebody_else_has_loaded_meanwhile_is_not_loaded_again():
    """It may serve as it is: decide again."""

    async def story(scene):
        target = scene.target(SMALL)
        scene.machine.put(SMALL)
        assert await switched(scene, target) is SwitchResult.OVERTAKEN
        assert scene.machine.named("load") == []

    play(story, MemoryMachine(*ALL))


def test_memory_that_somebody_else_has_taken_meanwhile_stops_the_load():
    """It would spill."""

    async def story(scene):
        target = scene.target(BIG)
        scene.machine.foreign[0] = 10 * GIB
        assert await switched(scene, target) is SwitchResult.MOVED
        assert scene.machine.named("load") == []
        assert scene.heard.of(Switched)[-1].error == "memory was taken meanwhile"

    play(story, MemoryMachine(*ALL))


def test_a_load_that_came_back_without_a_model_is_decided_again():
    """A real Ollama answers 200 to a load that its own eviction has undone."""
    machine = MemoryMachine(*ALL)
    machine.loads_nothing = True

    async def story(scene):
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.TAKEN
        assert scene.backend.lessons.learned.by_weights == {}

    play(story, machine)


def test_a_switch_that_nobody_waits_for_any_more_changes_nothing():
    """Neither what is in its way nor the model itself is touched."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        scene.backend.world.want({})
        assert await switched(scene, target) is SwitchResult.ABANDONED
        assert scene.machine.named("unload") == []
        assert list(scene.machine.rows) == [MIDDLE.name]

    play(story, MemoryMachine(*ALL))
