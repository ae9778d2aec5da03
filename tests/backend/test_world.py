"""What is known of one Ollama: whether it answers, what it has loaded, and what a decision sees of it."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from router.backend.world import NOT_ASKED
from router.core.units import GIB
from router.errors import UpstreamError, UpstreamGone
from router.telemetry import TaskFailed, UpstreamDown, UpstreamUp
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, row_of, weights_of
from tests.backend.scene import play
from tests.core.facts import gpu_of

ALL = (BIG, SMALL)
AWAY = {"version": UpstreamGone("refused"), "ps": UpstreamGone("refused")}


def test_an_ollama_that_answers_is_up_with_its_version():
    """It is reported once."""

    async def story(scene):
        await scene.backend.world.refresh()
        world = scene.backend.world
        assert (world.is_up, world.version, world.last_error) == (True, "0.33.0", "")
        assert scene.heard.of(UpstreamUp) == [UpstreamUp("0.33.0", "local")]

    play(story, MemoryMachine(*ALL))


def test_an_ollama_that_goes_down_and_comes_back_is_reported_each_time_and_asked_for_its_version_again():
    """It may be another one."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        world, epoch = scene.backend.world, scene.backend.world.epoch
        machine.trouble = dict(AWAY)
        before = epoch.number
        for _ in range(3):
            await world.refresh()
        assert (world.is_up, world.last_error, epoch.number) == (False, "refused", before + 1)
        assert len(scene.heard.of(UpstreamDown)) == 1
        machine.trouble, asked = {}, len(machine.named("version"))
        await world.refresh()
        assert (world.is_up, world.last_error, len(machine.named("version"))) == (True, "", asked + 1)
        assert len(scene.heard.of(UpstreamUp)) == 2

    play(story, machine)


def test_an_ollama_that_is_away_at_start_is_reported_once():
    """Before that nobody has asked."""
    machine = MemoryMachine(*ALL)
    machine.trouble = dict(AWAY)

    async def story(scene):
        await scene.backend.world.refresh()
        assert scene.heard.of(UpstreamDown) == [UpstreamDown("refused", "local")]
        assert scene.backend.world.last_error != NOT_ASKED

    play(story, machine)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_learned_order_of_the_cards_is_kept_while_ollama_lists_our_residents(is_restarted):
    """One late answer is no restart; an Ollama that has lost them may see other cards."""

    class Swapped(MemoryMachine):
        async def load(self, name, options, keep_alive_s, embedding=False):
            await super().load(name, options.at(options.num_ctx, 1 - options.main_gpu), keep_alive_s, embedding)

    machine = Swapped(*ALL, cards=(gpu_of(0), gpu_of(1, free_gib=23)))

    async def story(scene):
        world = scene.backend.world
        await scene.make_resident(SMALL)
        assert list(world.cards.numbers.by_uuid()) == ["GPU-1", "GPU-0"]
        machine.trouble = dict(AWAY)
        await world.refresh()
        machine.trouble = {}
        if is_restarted:
            machine.drop(SMALL.name)
        await world.refresh()
        assert list(world.cards.numbers.by_uuid()) == (["GPU-0", "GPU-1"] if is_restarted else ["GPU-1", "GPU-0"])

    play(story, machine)


def read_badly(scene, times, error=None):
    """Let `times` readings of `/api/ps` fail."""
    scene.machine.trouble = {"ps": error or UpstreamError("status 500")}
    return [scene.backend.world.refresh for _ in range(times)]


def test_a_reading_that_fails_is_no_outage_and_what_is_loaded_is_served():
    """Two of them neither; the third one in a row is. One that refuses connections is away at once."""

    async def story(scene):
        world = scene.backend.world
        await scene.make_resident(SMALL)
        ups = len(scene.heard.of(UpstreamUp))
        for _ in range(3):
            for read in read_badly(scene, 2):
                await read()
            assert (world.is_up, world.last_error) == (True, "status 500")
            assert scene.decide(SMALL).chosen.resident is not None
            scene.machine.trouble = {}
            await world.refresh()
            assert (world.is_up, world.last_error) == (True, "")
        assert scene.heard.of(UpstreamDown) == []
        for read in read_badly(scene, 3):
            await read()
        assert (world.is_up, len(scene.heard.of(UpstreamDown))) == (False, 1)
        scene.machine.trouble = {}
        await world.refresh()
        for read in read_badly(scene, 1, UpstreamGone("refused")):
            await read()
        assert (world.is_up, len(scene.heard.of(UpstreamUp))) == (False, ups + 1)

    play(story, MemoryMachine(*ALL))


def test_an_ollama_that_comes_and_goes_is_not_back():
    """Three good readings in a row bring it up again, one alone does not."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        world = scene.backend.world
        for read in read_badly(scene, 3):
            await read()
        good = machine.ps

        async def flapping():
            machine.trouble = {} if machine.trouble else {"ps": UpstreamError("status 500")}
            return await good()

        machine.ps = flapping
        for _ in range(4):
            await world.refresh()
        assert not world.is_up
        machine.ps, machine.trouble, before = good, {}, len(machine.named("ps"))
        await world.refresh()
        assert (world.is_up, len(machine.named("ps")) - before) == (True, 3)

    play(story, machine)


def test_an_ollama_that_has_lost_everything_after_a_failed_reading_was_restarted():
    """What was learned of its cards, and every bar, belongs to the one before."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        world = scene.backend.world
        await scene.make_resident(SMALL)
        world.bar(weights_of(BIG), 1000.0, "failed")
        for read in read_badly(scene, 1):
            await read()
        machine.trouble = {}
        machine.drop(SMALL.name)
        await world.refresh()
        assert world.snapshot().barred == {}

    play(story, machine)


def test_an_ollama_that_has_lost_only_what_was_being_unloaded_was_not_restarted():
    """Though a reading failed meanwhile: what was learned of it still counts."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        world = scene.backend.world
        tracked = await scene.make_resident(SMALL)
        world.bar(weights_of(BIG), 1000.0, "failed")
        unloading = asyncio.create_task(scene.backend.residency.unloading.unload(tracked))
        await asyncio.sleep(machine.unload_s / 2)
        for read in read_badly(scene, 1):
            await read()
        machine.drop(SMALL.name)
        machine.trouble = {}
        assert await unloading
        assert world.snapshot().barred == {weights_of(BIG): "failed"}

    play(story, machine)


def test_what_was_barred_and_that_there_is_no_gpu_is_forgotten_when_ollama_is_back():
    """It was restarted: it may load now what it could not."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        world = scene.backend.world
        world.bar(weights_of(SMALL), 1000.0, "failed")
        world.cards.mark_no_gpu()
        assert world.snapshot().barred == {weights_of(SMALL): "failed"}
        machine.trouble = dict(AWAY)
        await world.refresh()
        machine.trouble = {}
        await world.refresh()
        assert (world.snapshot().barred, world.cards.gpus == ()) == ({}, False)

    play(story, machine)


def test_a_model_in_ps_that_is_not_known_makes_the_catalog_be_read():
    """It was pulled and loaded by somebody else; where that fails its name stands for its weights."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        world = scene.backend.world
        machine.installed[MIDDLE.name] = MIDDLE
        machine.put(MIDDLE)
        machine.trouble["tags"] = UpstreamError("busy")
        await world.refresh()
        assert (world.is_up, list(world.residents)) == (True, ["registry.ollama.ai/library/middle:14b"])
        machine.trouble = {}
        await world.refresh()
        assert list(world.residents) == [weights_of(MIDDLE)]

    play(story, machine)


@pytest.mark.parametrize("name", ["", "not a name"])
def test_a_row_of_ps_without_a_name_does_not_hide_the_others(name):
    """An odd server's row is no fault of a request."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        machine.rows["odd"] = replace(row_of(SMALL), name=name)
        machine.put(SMALL)
        await scene.backend.world.refresh()
        assert scene.resident(SMALL) is not None

    play(story, machine)


def test_the_catalog_is_read_again_when_it_is_due():
    """Not with each refresh."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        for _ in range(5):
            await scene.backend.world.refresh()
        assert len(machine.named("tags")) == 1
        await asyncio.sleep(31)
        await scene.backend.world.refresh()
        assert len(machine.named("tags")) == 2

    play(story, machine)


def slow_ps(machine, seconds):
    """Let ps take a while; what was loaded when it began is what it shows."""
    fast = machine.ps

    async def ps():
        rows = await fast()
        await asyncio.sleep(seconds)
        return rows

    machine.ps = ps


def test_callers_share_a_refresh_and_none_of_them_cuts_it():
    """One of them leaves: the others get what was read."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        slow_ps(machine, 1.0)
        machine.put(SMALL)
        before = len(machine.named("ps"))
        first = asyncio.create_task(scene.backend.world.refresh())
        others = [asyncio.create_task(scene.backend.world.refresh()) for _ in range(3)]
        await asyncio.sleep(0.5)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await asyncio.gather(*others)
        assert len(machine.named("ps")) == before + 1
        assert scene.resident(SMALL) is not None

    play(story, machine)


def test_a_fresh_refresh_begins_after_the_call():
    """One under way may have read an older state; it is waited for, even where it fails."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        slow_ps(machine, 1.0)
        under_way = asyncio.create_task(scene.backend.world.refresh())
        await asyncio.sleep(0.5)
        machine.put(SMALL)
        await scene.backend.world.refresh_fresh()
        await under_way
        assert scene.resident(SMALL) is not None
        assert machine.probe.reads[-1] is True

    play(story, machine)


def test_watching_goes_on_while_ollama_is_away():
    """At the shorter of both intervals."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        machine.trouble = dict(AWAY)
        await asyncio.sleep(10)
        machine.trouble = {}
        machine.put(SMALL)
        await asyncio.sleep(2.1)
        assert scene.resident(SMALL) is not None

    options = {"snapshot.ps_interval_s": 2, "snapshot.probe_interval_s": 5}
    play(story, machine, options, is_watched=True)


def test_watching_goes_on_after_an_unexpected_error():
    """An answer that nobody has foreseen must not freeze what is known of the machine."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        machine.trouble["ps"] = KeyError("odd")
        await asyncio.sleep(3)
        machine.trouble = {}
        machine.put(SMALL)
        await asyncio.sleep(3)
        assert scene.resident(SMALL) is not None

    play(story, machine, is_watched=True)


def test_a_runner_that_died_is_not_used_any_more():
    """Its memory is free though ps shows it; not judged during a switch, when memory moves."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        world = scene.backend.world
        scene.machine.held.clear()
        world.loads.begin(weights_of(BIG), 8192)
        await world.refresh_fresh()
        assert not tracked.is_spilled
        world.loads.end()
        await world.refresh_fresh()
        assert tracked.is_spilled
        assert not world.snapshot().residents[0].is_fully_resident

    play(story, MemoryMachine(*ALL))


def test_a_decision_sees_everything_that_is_known_frozen():
    """Cards, residents and who wants them, the catalog, the switch under way, floors, ceiling, bars."""

    async def story(scene):
        await scene.make_resident(SMALL)
        world = scene.backend.world
        world.want({weights_of(SMALL): 3})
        world.loads.begin(weights_of(BIG), 8192)
        world.bar(weights_of(BIG), 10.0, "failed")
        world.cards.capacity.note_ceiling(7 * GIB)
        seen = world.snapshot()
        assert (seen.gpus, seen.catalog) == (world.cards.undisturbed, world.catalog)
        assert [(one.name, one.wanted) for one in seen.residents] == [(SMALL.name, 3)]
        assert (seen.loading, seen.barred) == ((weights_of(BIG), 8192), {weights_of(BIG): "failed"})
        assert (seen.ceiling_bytes, seen.left_bytes) == (7 * GIB, world.cards.left_bytes())
        world.loads.end()
        await asyncio.sleep(10)
        assert (world.snapshot().loading, world.snapshot().barred) == (None, {})

    play(story, MemoryMachine(*ALL))


def test_whatever_decisions_depend_on_voids_them():
    """Each of these steps advances the epoch."""

    async def story(scene):
        world = scene.backend.world
        for step in (
            lambda: world.loads.begin(weights_of(BIG), 8192),
            world.loads.end,
            lambda: world.bar(weights_of(BIG), 10.0, "failed"),
        ):
            before = world.epoch.number
            step()
            assert world.epoch.number > before

    play(story, MemoryMachine(*ALL))


def test_a_fault_that_nobody_foresaw_does_not_end_the_reading_of_the_state():
    """It is told once, the state counts as stale meanwhile, and the residents' leases go on being looked after."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        backend = scene.backend
        await asyncio.sleep(2)
        machine.trouble = {"ps": ZeroDivisionError("nobody foresaw it")}
        await asyncio.sleep(60)
        told = [(one.task, one.backend) for one in scene.heard.of(TaskFailed) if not one.is_repeated]
        assert told == [("world", "local")]
        assert (backend.world.is_stale, backend.upkeep.failing) == (True, ("world",))
        machine.trouble = {}
        await asyncio.sleep(31)
        assert not backend.world.is_stale
        await asyncio.sleep(60)
        assert backend.upkeep.failing == ()

    play(story, machine, is_watched=True)
