"""Every wait of a switch has a cause, and a deadline."""

import asyncio

import pytest

from router.backend.switches import SwitchResult
from router.backend.unloading import REPEAT_UNLOAD_S
from router.core.units import GIB, MIB
from router.errors import ProbeError
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.scene import play, took_s

ALL = (BIG, MIDDLE, SMALL)
SETTLE_S, UNLOAD_S, MEMORY_S, POLL_S = 0.6, 15.0, 10.0, 0.1
"""The defaults of the configuration."""


def lasts(took, at_least_s):
    """Return True for a wait that is `at_least_s` long and at most three polls longer."""
    return at_least_s - 0.001 <= took <= at_least_s + 3 * POLL_S


def moments(machine):
    """Let the machine note when it is asked to load and when it drops a model: what → loop time."""
    noted, loop = {}, asyncio.get_running_loop()
    called, drop = machine._called, machine.drop

    def note_call(method, *arguments):
        noted.setdefault(method, loop.time())
        called(method, *arguments)

    def note_drop(name):
        noted.setdefault("drop", loop.time())
        drop(name)

    machine._called, machine.drop = note_call, note_drop
    return noted


def pause_s(before, after, load_s, stays_s=0.0):
    """How long after the unload of `before` the load of `after` comes, if that is known to take `load_s`.

    `stays_s` is how long after its last load nothing was unloaded.
    """

    async def story(scene):
        await scene.make_resident(before)
        target = scene.target(after)
        scene.backend.residency.load_times.loaded(target.weights, after.size_bytes, load_s)
        scene.backend.residency.load_times.unloading(target.weights, 0, stays_s)
        noted = moments(scene.machine)
        assert await scene.backend.residency.switch(target) is SwitchResult.DONE
        return noted["load"] - noted["drop"]

    return play(story, MemoryMachine(*ALL))


def test_a_load_comes_no_sooner_after_an_unload_than_ollama_reads_memory():
    """It would take the load for memory that is not back, and stall for 5 s: longer than this load takes."""
    assert lasts(pause_s(BIG, MIDDLE, load_s=1), SETTLE_S)


def test_a_load_that_stalls_nobody_comes_at_once():
    """One that takes more than was freed ends Ollama's wait; one that takes as long as the stall outlasts it."""
    assert pause_s(MIDDLE, BIG, load_s=1) < SETTLE_S / 2
    assert pause_s(BIG, MIDDLE, load_s=5) < SETTLE_S / 2


def test_a_load_comes_at_once_if_its_model_serves_until_the_stall_is_over():
    """What is left of the stall then costs less than a pause: nothing else is unloaded before."""
    assert pause_s(BIG, MIDDLE, load_s=1, stays_s=3.5) < SETTLE_S / 2
    assert lasts(pause_s(BIG, MIDDLE, load_s=1, stays_s=3.0), SETTLE_S)


def test_a_load_with_nothing_in_its_way_waits_for_nothing():
    """Not even for a moment."""

    async def story(scene):
        target = scene.target(SMALL)
        took, result = await took_s(scene.backend.residency.switch(target))
        assert (result, took) == (SwitchResult.DONE, scene.machine.load_s)

    play(story, MemoryMachine(*ALL))


def test_memory_that_is_late_is_waited_for():
    """A driver may be seconds behind."""
    machine = MemoryMachine(*ALL)
    machine.free_lag_s = 4.0

    async def story(scene):
        await scene.make_resident(MIDDLE)
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(MIDDLE)))
        assert is_gone
        assert lasts(took, machine.unload_s + 4.0)
        assert scene.backend.cards.gpus[0].free_bytes == 24 * GIB

    play(story, machine)


def test_memory_of_a_runner_that_has_died_is_not_waited_for():
    """It is free already, and nothing more will come back."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        scene.machine.held.pop(MIDDLE.name)
        await scene.backend.world.refresh_fresh()
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(MIDDLE)))
        assert is_gone
        assert lasts(took, scene.machine.unload_s)

    play(story, MemoryMachine(*ALL))


def test_memory_that_never_comes_back_is_waited_for_to_a_deadline():
    """The switch goes on with what there is then."""
    machine = MemoryMachine(*ALL)
    machine.free_lag_s = 1000.0

    async def story(scene):
        await scene.make_resident(MIDDLE)
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(MIDDLE)))
        assert is_gone
        assert lasts(took, MEMORY_S + machine.unload_s)

    play(story, machine)


@pytest.mark.parametrize("has_probe", [True, False])
def test_memory_that_nobody_can_read_is_not_waited_for(has_probe):
    """Without a probe, or once its last reading has become too old."""
    machine = MemoryMachine(*ALL)
    machine.free_lag_s = 1000.0

    async def story(scene):
        await scene.make_resident(SMALL)
        machine.probe.error = ProbeError("lost")
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(SMALL)))
        assert is_gone
        assert took <= 1.0 + machine.unload_s + 3 * POLL_S

    play(story, machine, {"snapshot.stale_after_s": 1}, has_probe=has_probe)


def test_an_unload_is_asked_for_again_while_the_model_is_still_there():
    """Ollama does nothing while a runner is busy with somebody else's request."""
    machine = MemoryMachine(*ALL)
    machine.stubborn.add(SMALL.name)

    async def story(scene):
        await scene.make_resident(SMALL)
        asyncio.get_running_loop().call_later(5.0, machine.stubborn.clear)
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(SMALL)))
        assert is_gone
        assert len(machine.named("unload")) == int(took // REPEAT_UNLOAD_S) + 1 == 4

    play(story, machine)


def test_a_model_that_does_not_go_is_given_up_at_a_deadline_and_may_be_used_again():
    """The switch is decided again."""
    machine = MemoryMachine(*ALL)
    machine.stubborn.add(MIDDLE.name)

    async def story(scene):
        tracked = await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        took, result = await took_s(scene.backend.residency.switch(target))
        assert result is SwitchResult.OVERTAKEN
        assert lasts(took, UNLOAD_S)
        assert tracked.frozen(0, asyncio.get_running_loop().time()).is_fully_resident
        assert machine.named("load")[1:] == []

    play(story, machine)


def test_an_unload_is_broken_off_when_a_request_has_entered():
    """Nobody is cut; a request may be let in to what was about to go."""
    machine = MemoryMachine(*ALL)
    machine.stubborn.add(MIDDLE.name)

    async def story(scene):
        tracked = await scene.make_resident(MIDDLE)
        asyncio.get_running_loop().call_later(1.0, scene.backend.world.residents.enter, weights_of(MIDDLE))
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(tracked))
        assert not is_gone
        assert lasts(took, 1.0)
        assert tracked.frozen(0, asyncio.get_running_loop().time()).is_fully_resident

    play(story, machine)


def test_a_model_whose_tag_was_deleted_goes_by_time_alone():
    """Ollama does not know the name any more; its lease ends some time."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        del machine.installed[SMALL.name]
        asyncio.get_running_loop().call_later(6.0, machine.drop, SMALL.name)
        assert await scene.backend.residency.unloading.unload(tracked)

    play(story, machine)


def test_a_resident_whose_name_was_deleted_is_unloaded_under_another_name_of_its_weights():
    """Ollama knows a runner by its weights; without such a name only the end of the lease would unload it."""
    machine = MemoryMachine(SMALL)

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        tracked.name = "copy:3b"  # loaded under this name, which is installed no more
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(tracked))
        assert (is_gone, took < 5) == (True, True)
        assert machine.named("unload")[:2] == [("copy:3b",), (SMALL.name,)]

    play(story, machine)


def test_memory_of_a_model_that_somebody_else_has_unloaded_is_waited_for_ahead_of_a_load():
    """To the same deadline."""
    machine = MemoryMachine(*ALL)
    machine.free_lag_s = 3.0

    async def story(scene):
        await scene.make_resident(MIDDLE)
        await scene.backend.world.refresh_fresh()
        target = scene.target(SMALL)
        machine.drop(MIDDLE.name)
        noted, started_s = moments(machine), asyncio.get_running_loop().time()
        assert await scene.backend.residency.switch(target) is SwitchResult.DONE
        assert lasts(noted["load"] - started_s, 3.0)
        machine.free_lag_s = 1000.0
        machine.drop(SMALL.name)
        target = scene.target(MIDDLE)
        took, result = await took_s(scene.backend.residency.switch(target))
        assert result is SwitchResult.DONE
        assert lasts(took - machine.load_s, MEMORY_S)

    play(story, machine)


def test_a_wait_for_memory_that_others_took_ends_when_nothing_moves_any_more():
    """Even if less is free than before: they took more than came back."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        asyncio.get_running_loop().call_later(0.3, scene.machine.foreign.update, {0: 12 * GIB})
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(MIDDLE)))
        assert is_gone
        assert took < 2.0

    machine = MemoryMachine(*ALL)
    machine.unload_s = 0.4
    play(story, machine)


def test_memory_that_others_move_a_little_all_the_time_has_come_to_rest():
    """A desktop, for example."""

    async def story(scene):
        await scene.make_resident(MIDDLE)

        def jitter(mib):
            scene.machine.foreign[0] = 12 * GIB + mib * MIB
            asyncio.get_running_loop().call_later(0.25, jitter, 20 - mib)

        asyncio.get_running_loop().call_later(0.3, jitter, 0)
        took, is_gone = await took_s(scene.backend.residency.unloading.unload(scene.resident(MIDDLE)))
        assert is_gone
        assert took < 2.5

    machine = MemoryMachine(*ALL)
    machine.unload_s = 0.4
    play(story, machine)


def test_memory_of_a_runner_that_died_with_its_server_is_not_waited_for():
    """It is back before ps can say that the model has gone, and is not counted twice until then."""

    async def story(scene):
        await scene.make_resident(MIDDLE)
        scene.machine.held.clear()
        for _ in range(3):
            await scene.backend.world.refresh_fresh()
            await asyncio.sleep(1.0)
        scene.machine.foreign[0] = GIB // 2
        scene.machine.drop(MIDDLE.name)
        await scene.backend.world.refresh_fresh()
        await asyncio.sleep(1.5)
        took, result = await took_s(scene.backend.residency.switch(scene.target(SMALL)))
        assert result is SwitchResult.DONE
        assert lasts(took, scene.machine.load_s)

    play(story, MemoryMachine(*ALL))
