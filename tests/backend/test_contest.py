"""Loads that are held until a request uses them, and what is taken for a contest."""

import asyncio

import pytest

from router.backend.contest import CONTEST_S, HELD_S, UPSETS, USED_S, Contest
from router.backend.switches import SwitchResult
from router.core.ollama.runner import LoadOptions
from router.errors import LoadFailed, ModelNotFound
from router.http.client.response import UpstreamResponse
from tests.backend.machine import SMALL, MemoryMachine, weights_of
from tests.backend.scene import play
from tests.http.scripted_relay import ScriptedRelay


class Held(UpstreamResponse):
    """An answer that notes when it is closed."""

    closed_s: float = -1.0

    def close(self):
        self.closed_s = asyncio.get_running_loop().time()


def contest(status=200, body=b""):
    return Contest(ScriptedRelay(lambda _: UpstreamResponse.of(status, [], body)))


def test_two_upset_switches_in_a_row_are_a_contest_for_a_minute():
    """One may be an accident; one that ends well in between starts the count anew."""

    async def story(_scene):
        found = contest()
        for result in (SwitchResult.TAKEN, SwitchResult.DONE, SwitchResult.OVERTAKEN):
            found.count(result)
            assert not found.is_on
        for _ in range(UPSETS - 1):
            found.count(SwitchResult.TAKEN)
        assert found.is_on
        await asyncio.sleep(CONTEST_S + 1)
        assert not found.is_on

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
            await contest(status, body).load(scene.facts(SMALL), LoadOptions(num_ctx=8192), 330.0)
        assert told.value.message == text

    play(story, MemoryMachine(SMALL))
