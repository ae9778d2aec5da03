"""The life of a backend: what is read at start, what runs meanwhile, what is given back at the end."""

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from router.backend.backend import PROBE_PAUSE_S, PROBE_TRIES, REMOVE_S
from router.errors import ProbeError, UpstreamGone
from tests.backend.machine import SMALL, MemoryMachine, weights_of
from tests.backend.scene import backend_on, play, took_s

TAG = "ollama-router-derived/small:3b-old"


def started(machine, **more):
    """How long the start took, and the cards then."""

    async def run():
        scene_of = backend_on(machine, is_watched=True, **more)
        took, scene = await took_s(scene_of.__aenter__())
        gpus = scene.backend.cards.gpus
        await scene_of.__aexit__(None, None, None)
        return took, gpus

    return run_virtual(run())


def test_at_start_the_state_is_read_once():
    """Nothing is waited for where the probe answers, or where there is none."""
    assert started(MemoryMachine(SMALL))[0] == 0
    assert started(MemoryMachine(SMALL), has_probe=False) == (0, None)


def test_a_driver_that_sleeps_is_given_some_time_at_start():
    """Then memory counts as unknown."""
    machine = MemoryMachine(SMALL)
    machine.probe.error = ProbeError("asleep")
    took, gpus = started(machine)
    assert (took, gpus) == (PROBE_TRIES * PROBE_PAUSE_S, None)


def test_a_driver_that_wakes_up_ends_the_wait():
    """The first reading is enough."""
    machine = MemoryMachine(SMALL)
    read, tries = machine.probe.read, []

    async def waking(*, is_fresh=False):
        tries.append(is_fresh)
        machine.probe.error = ProbeError("asleep") if len(tries) < 3 else None
        return await read(is_fresh=is_fresh)

    machine.probe.read = waking
    took, gpus = started(machine)
    assert (took, len(gpus)) == (2 * PROBE_PAUSE_S, 1)


def test_an_ollama_that_is_away_at_start_is_no_error():
    """It is watched until it comes."""
    machine = MemoryMachine(SMALL)
    machine.trouble["version"] = UpstreamGone("refused")

    async def story(scene):
        assert not scene.backend.world.is_up
        machine.trouble.clear()
        await asyncio.sleep(1.1)
        assert scene.backend.world.is_up

    play(story, machine, is_watched=True)


def test_tags_of_a_router_that_died_are_removed_whenever_ollama_comes_up():
    """At start, and after a restart of Ollama."""
    machine = MemoryMachine(SMALL)
    machine.derived[TAG] = (SMALL.name, {})

    async def story(_scene):
        await asyncio.sleep(0.1)
        assert machine.derived == {}
        machine.trouble["ps"] = UpstreamGone("refused")
        await asyncio.sleep(2)
        machine.derived[TAG] = (SMALL.name, {})
        machine.trouble.clear()
        await asyncio.sleep(2)
        assert machine.derived == {}

    play(story, machine, is_watched=True)


def test_at_the_end_everything_is_given_back():
    """The switch is cut, tags are removed, connections and the probe are closed; a second time does nothing."""
    machine = MemoryMachine(SMALL)

    async def story(scene):
        waiting = asyncio.create_task(scene.backend.line.wait("key", lambda: scene.decide(SMALL), 0.0))
        await asyncio.sleep(1)
        machine.derived[TAG] = (SMALL.name, {})
        await scene.backend.stop()
        assert (scene.backend.line.is_switching, machine.derived) == (False, {})
        assert (machine.is_closed, machine.probe.is_closed) == (True, True)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await scene.backend.stop()
        calls = len(machine.calls)
        await asyncio.sleep(10)
        assert len(machine.calls) == calls

    play(story, machine, is_watched=True)


def test_nothing_is_removed_from_an_ollama_that_is_away_at_the_end():
    """It would only delay the end."""
    machine = MemoryMachine(SMALL)

    async def story(scene):
        machine.trouble["ps"] = UpstreamGone("refused")
        await scene.backend.world.refresh_fresh()
        calls = len(machine.named("tags"))
        await scene.backend.stop()
        assert len(machine.named("tags")) == calls

    play(story, machine, has_probe=False)


def test_a_request_gives_back_what_it_holds_and_nothing_where_it_holds_nothing():
    """On whatever path it has ended."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        scene.backend.leave(None)
        scene.backend.leave(scene.backend.world.residents.enter(weights_of(SMALL)))
        assert (tracked.in_flight, tracked.idle_since_s) == (0, asyncio.get_running_loop().time())

    play(story, MemoryMachine(SMALL))


def test_the_rules_of_decisions_are_the_same_object_until_something_was_learned():
    """Needs are remembered by it."""

    async def story(scene):
        first = scene.backend.rules()
        assert scene.backend.rules() is first
        assert first.machine.settings.version == "0.33.0"
        await scene.make_resident(SMALL)
        assert scene.backend.rules() is not first

    play(story, MemoryMachine(SMALL))


@pytest.mark.parametrize("method", ["tags", "delete"])
def test_an_ollama_that_hangs_at_the_end_holds_up_the_stop_only_for_a_moment(method):
    """Its derived tags remain then, and the next router removes them."""
    machine = MemoryMachine(SMALL)

    async def story(scene):
        machine.derived[TAG] = (SMALL.name, {})

        async def hang(*_):
            await asyncio.Event().wait()

        setattr(machine, method, hang)
        took, _ = await took_s(scene.backend.stop())
        assert took == pytest.approx(REMOVE_S)
        assert machine.is_closed

    play(story, machine)


def test_a_start_is_under_way_until_memory_is_known():
    """A request that comes before would be decided without a probe, and without what was learned."""
    machine = MemoryMachine(SMALL)
    machine.probe.error = ProbeError("asleep")

    async def run():
        async with backend_on(machine) as scene:
            backend = scene.backend
            assert not backend.is_starting
            starting = asyncio.create_task(backend.start(lambda: None))
            await asyncio.sleep(0.1)
            assert (backend.is_starting, backend.world.is_up) == (True, True)
            took, _ = await took_s(backend.started())
            assert took == pytest.approx(PROBE_TRIES * PROBE_PAUSE_S - 0.1)
            assert not backend.is_starting
            await starting
            assert (await took_s(backend.started()))[0] == 0

    run_virtual(run())
