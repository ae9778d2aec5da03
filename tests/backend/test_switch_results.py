"""Switches that end without their model: what is reported, and what is left as it was."""

import asyncio
from dataclasses import replace

import pytest

from router.backend.contest import SIGNS
from router.backend.residency import MOST_FAILURES
from router.backend.switches import SwitchResult
from router.core.units import GIB
from router.errors import LoadFailed, UpstreamError, UpstreamTimeout
from router.http.client.response import UpstreamResponse
from router.telemetry import Switched
from tests.backend.machine import BIG, MIDDLE, SMALL, TWO_CARDS, MemoryMachine, weights_of
from tests.backend.scene import play
from tests.core.facts import facts_of
from tests.http.scripted_relay import ScriptedRelay

ALL = (BIG, MIDDLE, SMALL)
LARGE = facts_of("large:30b", 18)


def switched(scene, target):
    return scene.backend.residency.switch(target)


def late():
    raise UpstreamTimeout("no answer in time")


def test_a_load_that_ollama_refuses_has_failed_and_its_words_are_kept_until_it_succeeds():
    """They are the answer of a request that nothing else can serve."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        machine.trouble["load"] = LoadFailed("llama runner terminated", status=507)
        residency = scene.backend.residency
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.FAILED
        kept = residency.last_failure(weights_of(SMALL))
        assert (kept.message, kept.status) == ("llama runner terminated", 507)
        assert kept.__traceback__ is None, "it would hold all that the load went through"
        assert residency.last_failure(weights_of(BIG)) is None
        failed = scene.heard.of(Switched)[-1]
        assert (failed.phase, failed.error) == ("failed", "llama runner terminated")
        machine.trouble.clear()
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.DONE
        assert residency.last_failure(weights_of(SMALL)) is None

    play(story, machine)


def test_failures_of_ever_new_models_take_bounded_memory():
    """An Ollama whose models are replaced again and again: the last ones are known, and bars end with their time."""
    many = [facts_of(f"m{number}:1b", 1) for number in range(MOST_FAILURES + 20)]
    machine = MemoryMachine(*many)

    async def story(scene):
        machine.trouble["load"] = LoadFailed("llama runner terminated", status=500)
        for facts in many:
            assert await switched(scene, scene.target(facts)) is SwitchResult.FAILED
            scene.backend.world.bar(weights_of(facts), 1.0, "failed")
            await asyncio.sleep(1.0)
        residency, world = scene.backend.residency, scene.backend.world
        known = [residency.last_failure(weights_of(facts)) is not None for facts in many]
        assert known == [False] * 20 + [True] * MOST_FAILURES
        assert list(world._barred) == [weights_of(many[-1])]

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


@pytest.mark.parametrize("cause", ["a game", "our own request", "a refused card"])
def test_what_is_not_somebody_elses_load_is_no_contest(cause):
    """However often it happens in a row."""
    machine = MemoryMachine(*ALL, cards=TWO_CARDS)

    async def story(scene):
        await scene.make_resident(MIDDLE)
        for _ in range(SIGNS):
            target = scene.target(BIG)
            if cause == "a game":
                machine.foreign = {0: 20 * GIB, 1: 20 * GIB}
            elif cause == "our own request":
                target = replace(target, plan=replace(target.plan, evict=(weights_of(MIDDLE),)))
                scene.backend.world.residents.enter(weights_of(MIDDLE))
            else:
                target = replace(target, plan=replace(target.plan, options=target.plan.options.at(8192, 1)))
                machine.trouble["load"] = LoadFailed("invalid value for main_gpu: 1")
            result = SwitchResult.RENUMBERED if cause == "a refused card" else SwitchResult.MOVED
            assert await switched(scene, target) is result
            machine.foreign = {}
            await scene.backend.world.refresh_fresh()
        assert not scene.backend.contest.is_on

    play(story, machine)


@pytest.mark.parametrize("theirs", [BIG, LARGE], ids=["what was unloaded", "another model"])
def test_a_model_that_somebody_else_loads_where_room_was_made_is_a_contest(theirs):
    """The memory was taken by a load, not by another program."""
    machine = MemoryMachine(*ALL, LARGE)

    async def story(scene):
        machine.put(BIG)
        await scene.backend.world.refresh_fresh()
        target = scene.target(MIDDLE)
        assert target.plan.evict == (weights_of(BIG),)
        scene.backend.residency.load_times.loaded(target.weights, MIDDLE.size_bytes, 1.0)  # so it pauses before it
        asyncio.get_running_loop().call_later(0.5, machine.put, theirs)
        assert await switched(scene, target) is SwitchResult.OVERTAKEN
        assert scene.backend.contest.is_on

    play(story, machine)


@pytest.mark.parametrize("whose", ["others", "ours"])
def test_a_model_that_is_gone_at_once_where_one_of_others_was_unloaded_is_a_contest(whose):
    """They have loaded theirs again, and Ollama evicted ours for it. In place of our own it may be an accident."""
    machine = MemoryMachine(*ALL)

    async def story(scene):
        if whose == "others":
            machine.put(MIDDLE)
            await scene.backend.world.refresh_fresh()
        else:
            await scene.make_resident(MIDDLE)
        target = scene.target(BIG)
        machine.loads_nothing = True
        assert await switched(scene, target) is SwitchResult.TAKEN
        assert scene.backend.contest.is_on is (whose == "others")

    play(story, machine)


@pytest.mark.parametrize(
    ("answer", "status"),
    [(lambda: UpstreamResponse.of(404, [], b'{"error":"model not found"}'), 404), (late, 504)],
    ids=["not found", "late"],
)
def test_a_held_load_that_does_not_succeed_has_failed_like_any_other(answer, status):
    """Those who wait for it are told why."""

    async def story(scene):
        for _ in range(SIGNS):
            scene.backend.contest.count(SwitchResult.TAKEN)
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.FAILED
        assert scene.backend.residency.last_failure(weights_of(SMALL)).status == status

    play(story, MemoryMachine(*ALL), relay=ScriptedRelay(lambda _: answer()))


def test_a_load_that_fails_keeps_what_is_known_of_other_programs():
    """Only a card whose number was wrong has another history."""

    async def story(scene):
        cards = scene.backend.cards
        cards.note_floor(is_switching=False)
        before = cards.left_bytes()
        scene.machine.trouble["load"] = LoadFailed("unknown model architecture", status=500)
        assert await switched(scene, scene.target(SMALL)) is SwitchResult.FAILED
        assert [left for _, left in before[0]] == [left for _, left in cards.left_bytes()[0]] == [24 * GIB]

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
