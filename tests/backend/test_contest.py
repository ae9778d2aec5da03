"""What is taken for a contest, whose turn it is then, and loads that are held until a request uses them."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from router.backend.contest import CONTESTED, GIVE_S, HELD_S, HURRIED_S, SIGNS, USED_S, Contest
from router.backend.epoch import Epoch
from router.backend.residents import Residents
from router.backend.switches import SwitchResult
from router.config import load_config
from router.core.ollama.runner import LoadOptions
from router.errors import LoadFailed, ModelNotFound, UpstreamError
from router.http.client.response import UpstreamResponse
from router.telemetry import Notified, Telemetry
from tests.backend.machine import MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.queue_scene import in_line
from tests.backend.scene import play
from tests.http.scripted_relay import ScriptedRelay

CONFIG = load_config(env={})
TURN_S, CONTEST_S = CONFIG.queue.age_bound_s, CONFIG.switch.contest_s


class Held(UpstreamResponse):
    """An answer that notes when it is closed."""

    closed_s: float = -1.0

    def close(self):
        self.closed_s = asyncio.get_running_loop().time()


def contest(status=200, body=b""):
    relay = ScriptedRelay(lambda _: UpstreamResponse.of(status, [], body))
    return Contest(relay, Residents(frozenset(), Epoch()), CONFIG, Telemetry())


def said(scene):
    """How often a contest was reported."""
    return [event.message for event in scene.heard.of(Notified)].count(CONTESTED)


def test_two_upset_switches_in_a_row_are_a_contest_for_a_minute():
    """One may be an accident; one that ends well in between starts the count anew."""

    async def story(_scene):
        found = contest()
        for result in (SwitchResult.TAKEN, SwitchResult.DONE, SwitchResult.OVERTAKEN):
            found.count(result)
            assert not found.is_on
        for _ in range(SIGNS - 1):
            found.count(SwitchResult.TAKEN)
        assert found.is_on
        await asyncio.sleep(CONTEST_S + 1)
        assert not found.is_on

    play(story, MemoryMachine(SMALL))


async def ours(scene, facts):
    """Make a model resident as if the router had loaded it."""
    scene.machine.put(facts)
    await scene.backend.world.refresh_fresh()
    tracked = scene.resident(facts)
    tracked.loaded(LoadOptions(num_ctx=32768), 330.0, asyncio.get_running_loop().time(), {})
    return tracked


async def lose(scene, facts):
    """Somebody else unloads a model that was just used."""
    tracked = await ours(scene, facts)
    scene.backend.world.residents.enter(tracked.weights)
    scene.backend.leave(tracked)
    scene.machine.drop(facts.name)
    await scene.backend.world.refresh_fresh()


def test_two_residents_that_somebody_else_unloads_within_a_minute_are_a_contest_that_is_said_once():
    """Each later one prolongs it."""

    async def story(scene, _queue):
        await lose(scene, SMALL)
        assert not scene.backend.contest.is_on
        await asyncio.sleep(CONTEST_S + 1)
        for is_on in (False, True, True):
            await lose(scene, SMALL)
            assert scene.backend.contest.is_on is is_on
        await asyncio.sleep(CONTEST_S - 5)
        assert scene.backend.contest.is_on
        assert said(scene) == 1

    in_line(story, MemoryMachine(SMALL))


@pytest.mark.parametrize("cause", ["router", "restart", "idle", "not ours", "together", "passed on"])
def test_a_resident_that_goes_for_another_reason_is_no_sign(cause):
    """The router's own unload, a restart of Ollama, a long idle time, a model of others; two at once are one sign."""

    async def story(scene, _queue):
        world, machine = scene.backend.world, scene.machine
        for _ in range(SIGNS if cause != "together" else 1):
            if cause == "not ours":
                machine.put(SMALL)
                await world.refresh_fresh()
                assert scene.resident(SMALL) is not None
            else:
                await scene.make_resident(SMALL)
            if cause == "passed on":
                scene.backend.contest.expect_loads()
            if cause == "router":
                await scene.backend.residency.unloading.unload(scene.resident(SMALL))
            if cause == "together":
                await scene.make_resident(MIDDLE)
                machine.drop(MIDDLE.name)
            if cause == "idle":
                await asyncio.sleep(CONTEST_S + 1)
            if cause == "restart":
                machine.trouble["ps"] = UpstreamError("gone")
                for _ in range(3):
                    await world.refresh_fresh()
                machine.trouble.clear()
            machine.drop(SMALL.name)
            await world.refresh_fresh()
        assert scene.resident(SMALL) is None
        assert not scene.backend.contest.is_on

    in_line(story, MemoryMachine(SMALL, MIDDLE))


@pytest.mark.parametrize(("closer_s", "in_flight", "is_on"), [(60, 1, True), (HURRIED_S, 1, False), (60, 0, False)])
def test_an_expiry_that_moves_closer_while_a_resident_is_busy_is_a_contest_at_once(closer_s, in_flight, is_on):
    """Only a request to unload it does that; of an idle one, a client's keep_alive does."""

    async def story(scene, _queue):
        tracked = await scene.make_resident(SMALL)
        for _ in range(in_flight):
            scene.backend.world.residents.enter(tracked.weights)
        row = scene.machine.rows[SMALL.name]
        scene.machine.rows[SMALL.name] = replace(row, expires_at=row.expires_at - timedelta(seconds=closer_s))
        await scene.backend.world.refresh_fresh()
        assert scene.backend.contest.is_on is is_on
        for _ in range(in_flight):
            scene.backend.leave(tracked)

    in_line(story, MemoryMachine(SMALL))


def test_a_busy_resident_gives_way_after_its_turn_until_it_was_idle_for_a_moment():
    """In a contest only. Then nobody has come, and its next turn begins."""

    async def story(scene, queue):
        tracked, line = await scene.make_resident(SMALL), scene.backend.line
        scene.backend.world.residents.enter(tracked.weights)
        await asyncio.sleep(TURN_S + 1)
        assert line.may_enter(tracked)
        scene.backend.contest.note(is_clear=True)
        assert not line.may_enter(tracked)
        waiting = queue.join(SMALL)
        await asyncio.sleep(5)
        assert not waiting.done()
        scene.backend.leave(tracked)
        await asyncio.sleep(GIVE_S - 0.2)
        assert not waiting.done()
        await asyncio.sleep(0.4)
        assert await waiting == tracked.weights
        scene.backend.world.residents.enter(tracked.weights)
        await asyncio.sleep(TURN_S - 1)
        assert line.may_enter(tracked)
        await asyncio.sleep(1)
        assert not line.may_enter(tracked)
        scene.backend.leave(tracked)

    in_line(story, MemoryMachine(SMALL))


def test_a_resident_whose_turn_has_begun_is_open():
    """Each load begins one, and a contest that is over ends it."""

    async def story(scene, _queue):
        scene.backend.contest.note(is_clear=True)
        tracked = await ours(scene, SMALL)
        assert scene.backend.line.may_enter(tracked)
        scene.backend.world.residents.enter(tracked.weights)
        await asyncio.sleep(TURN_S)
        assert scene.backend.contest.giving_way() == {tracked.weights}
        await asyncio.sleep(CONTEST_S)
        assert scene.backend.contest.giving_way() == frozenset()
        scene.backend.leave(tracked)

    in_line(story, MemoryMachine(SMALL))


def test_a_held_load_names_no_keep_alive():
    """That would save a runner that Ollama has marked to go, and whoever waits for its memory would wait on."""

    async def story(scene):
        relay = ScriptedRelay(lambda _: UpstreamResponse.of(200, []))
        found = Contest(relay, scene.backend.world.residents, CONFIG, Telemetry())
        (await found.load(scene.facts(SMALL), LoadOptions(num_ctx=8192))).close()
        (request,) = relay.requests
        assert b"keep_alive" not in request.body
        assert b'"num_ctx":8192' in request.body

    play(story, MemoryMachine(SMALL))


@pytest.mark.parametrize(("enters_s", "closed_s"), [(None, HELD_S), (0.5, 0.5 + USED_S)])
def test_a_held_load_is_let_go_when_a_request_uses_it_or_none_comes(enters_s, closed_s):
    """A request that has just entered may still have to be sent."""

    async def story(scene):
        tracked = await scene.make_resident(SMALL)
        found, held, loop = contest(), Held(None, UpstreamResponse.of(200, []).head, 200), asyncio.get_running_loop()
        found.hold(tracked, held)
        started_s = loop.time()
        if enters_s is not None:
            loop.call_later(enters_s, scene.backend.world.residents.enter, weights_of(SMALL))
        await asyncio.sleep(HELD_S + 1)
        assert held.closed_s - started_s == pytest.approx(closed_s, abs=0.1)
        if enters_s is not None:
            scene.backend.leave(tracked)

    play(story, MemoryMachine(SMALL))


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (500, b'{"error":"out of memory"}', LoadFailed, "out of memory"),
        (404, b'{"error":"model \'a\' not found"}', ModelNotFound, "model 'a' not found"),
        (502, b"<html>", LoadFailed, "<html>"),
    ],
)
def test_a_held_load_that_ollama_refuses_is_its_own_error(status, body, error, text):
    """As of any other load."""

    async def story(scene):
        with pytest.raises(error) as told:
            await contest(status, body).load(scene.facts(SMALL), LoadOptions(num_ctx=8192))
        assert told.value.message == text

    play(story, MemoryMachine(SMALL))
