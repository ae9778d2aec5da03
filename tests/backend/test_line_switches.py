"""The switches that the line starts: one at a time, what they close, and what becomes of a model that fails."""

import asyncio
import json

import pytest

from router.backend.contest import CONTESTED, SIGNS
from router.config import Switch
from router.core.units import GIB
from router.errors import LoadFailed, UpstreamError
from router.http.client.response import UpstreamResponse
from router.telemetry import Notified, Switched
from tests.backend.machine import BIG, MIDDLE, SMALL, TWO_CARDS, MemoryMachine, weights_of
from tests.backend.queue_scene import fill, in_line
from tests.backend.scene import took_s
from tests.http.scripted_relay import ScriptedRelay

ALL = (BIG, MIDDLE, SMALL)


def test_one_switch_runs_at_a_time():
    """Though two cards have room for both models."""
    machine = MemoryMachine(*ALL, cards=TWO_CARDS)

    async def story(_scene, queue):
        found = await asyncio.gather(*(queue.join(facts) for facts in ALL))
        assert found == [weights_of(facts) for facts in ALL]
        assert (machine.most_loading, len(machine.named("load"))) == (1, 3)

    in_line(story, machine)


def test_while_a_switch_runs_its_model_is_closed_and_its_memory_is_reserved():
    """Nobody may use a runner that is not verified yet."""

    async def story(scene, queue):
        waiting = queue.join(SMALL)
        await asyncio.sleep(1)
        line = queue.line
        assert (line.is_switching, line.loading.facts.name) == (True, SMALL.name)
        loading = scene.backend.world.residents.get(weights_of(SMALL))
        assert loading is None or not line.may_enter(loading)
        assert line.reserved_bytes(0) == sum(line.loading.plan.need_by_card) > SMALL.size_bytes
        assert (line.reserved_bytes(1), scene.backend.reserved_bytes()) == (0, {0: line.reserved_bytes(0)})
        assert scene.backend.world.loads.switch == (weights_of(SMALL), 32768)
        await waiting
        assert (line.is_switching, line.loading, line.reserved_bytes(0)) == (False, None, 0)
        assert line.may_enter(scene.backend.world.residents[weights_of(SMALL)])
        assert scene.backend.world.loads.switch is None

    in_line(story, MemoryMachine(*ALL))


@pytest.mark.parametrize(
    ("error", "pause_s"),
    [(LoadFailed("corrupt"), Switch().bar_s), (UpstreamError("refused"), 0.0)],
    ids=["failed", "away"],
)
def test_a_model_whose_load_has_failed_is_left_alone_for_a_while(error, pause_s):
    """Where Ollama was away it is not the model's fault."""

    async def story(scene, queue):
        scene.machine.trouble["load"], scene.machine.trouble_s = error, 0.2
        waiting = queue.join(SMALL)
        await asyncio.sleep(0.3)
        scene.machine.trouble.clear()
        if not pause_s:
            assert await waiting == weights_of(SMALL)
            return
        await waiting
        assert scene.decide(SMALL).chosen is None
        assert scene.backend.world.snapshot().barred == {weights_of(SMALL): "corrupt"}
        await asyncio.sleep(pause_s - 1)
        assert weights_of(SMALL) in scene.backend.world.snapshot().barred
        await asyncio.sleep(1.1)
        assert scene.backend.world.snapshot().barred == {}

    in_line(story, MemoryMachine(*ALL))


def test_an_ollama_that_is_away_is_not_asked_to_load_again_and_again():
    """Each try costs a connection and two events; some time must pass in between."""

    async def story(scene, queue):
        scene.machine.trouble["load"], scene.machine.trouble_s = UpstreamError("connection refused"), 0.01
        queue.join(SMALL)
        await asyncio.sleep(2)
        assert len(scene.machine.named("load")) <= 10

    in_line(story, MemoryMachine(*ALL))


def test_a_model_that_somebody_else_unloads_at_once_is_loaded_again_after_growing_pauses_and_that_is_said_once():
    """Another router before the same Ollama: nobody is refused for it. From the third load on the load is held."""
    machine = MemoryMachine(*ALL)
    machine.loads_nothing, machine.load_s = True, 0.1
    held = []

    def hold(request):
        held.append(json.loads(request.body))
        if not machine.loads_nothing:
            machine.put(SMALL)
        return UpstreamResponse.of(200, [])

    async def story(scene, queue):
        waiting = queue.join(SMALL)
        await asyncio.sleep(20)
        assert len(machine.named("load")) == SIGNS
        assert 4 <= len(held) <= 14
        assert scene.backend.world.snapshot().barred == {}
        assert [event.message for event in scene.heard.of(Notified)] == [CONTESTED]
        machine.loads_nothing = False
        assert await waiting == weights_of(SMALL)
        options = machine.named("load")[0][1]
        assert held[-1]["options"]["num_ctx"] == options.num_ctx
        assert (held[-1]["model"], held[-1]["options"]["num_predict"] > 0) == (SMALL.name, True)

    in_line(story, machine, relay=ScriptedRelay(hold))


def test_a_fault_of_ours_in_a_switch_does_not_stop_the_line():
    """It is reported, the model counts as failed, and other switches go on."""

    async def story(scene, queue):
        scene.machine.trouble["load"] = ZeroDivisionError("a fault")
        await queue.join(SMALL)
        assert scene.decide(SMALL).chosen is None
        (noted,) = scene.heard.of(Notified)
        assert (noted.level, "a fault" in noted.message, SMALL.name in noted.message) == ("error", True, True)
        scene.machine.trouble.clear()
        assert await queue.join(MIDDLE) == weights_of(MIDDLE)

    in_line(story, MemoryMachine(*ALL))


def test_closing_the_line_cuts_the_switch_under_way():
    """Nothing runs on when the router stops."""

    async def story(_scene, queue):
        queue.join(SMALL)
        await asyncio.sleep(1)
        took, _ = await took_s(queue.line.aclose())
        assert (took, queue.line.is_switching, queue.line.loading) == (0, False, None)

    in_line(story, MemoryMachine(*ALL))


def test_the_swap_budget_counts_upgrades_within_a_minute():
    """Every other switch is what somebody asked for."""

    async def story(_scene, queue):
        line = queue.line
        for facts in (MIDDLE, BIG, MIDDLE):
            assert await queue.join(facts) == weights_of(facts)
            assert line.may_upgrade()
        assert await queue.join(BIG, MIDDLE) == weights_of(BIG)
        assert not line.may_upgrade()
        await asyncio.sleep(50)
        assert not line.may_upgrade()
        await asyncio.sleep(11)
        assert line.may_upgrade()

    in_line(story, MemoryMachine(*ALL), {"defaults.swaps_per_minute": 1})


def test_the_expected_wait_grows_with_what_must_be_loaded():
    """At least a second; each model counts once."""

    async def story(scene, queue):
        line = queue.line
        assert line.expected_wait_s() == 1
        await fill(scene, BIG)
        for _ in range(3):
            queue.join(MIDDLE)
        await asyncio.sleep(0.1)
        assert line.expected_wait_s() == MIDDLE.size_bytes / (1 << 30)

    in_line(story, MemoryMachine(*ALL))


def test_memory_that_others_took_during_a_switch_counts_for_the_decisions_of_the_next_one():
    """Else those who wait would be decided otherwise as soon as it has begun, and it would be abandoned for ever."""
    machine = MemoryMachine(*ALL)

    async def story(scene, queue):
        await scene.make_resident(MIDDLE)
        asyncio.get_running_loop().call_later(0.1, machine.foreign.update, {0: 16 * GIB})
        assert await asyncio.wait_for(queue.join(BIG, SMALL), 30) == weights_of(SMALL)
        assert len([event for event in scene.heard.of(Switched) if event.phase == "started"]) <= 4

    in_line(story, machine)
