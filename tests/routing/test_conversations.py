"""A conversation keeps its model."""

import asyncio

import pytest

from router.core.payload.conversation import beginning_of
from router.core.units import MIB
from router.routing.conversations import Conversations
from tests.backend.machine import SMALL as LITTLE
from tests.backend.machine import MemoryMachine
from tests.config.keys.play import BIG, CHAIN, MIDDLE, SMALL, play
from tests.routing.counting import counted
from tests.routing.scene import routed

TURNS = 16
CAREFUL = {**CHAIN, "defaults.upgrade_after_s": 600}


async def turn(one, conversation, number, model=BIG, path="/api/chat"):
    """Ask as Open WebUI does: with all that was said so far. Return which model answered."""
    messages = [{"role": "user", "content": f"[[tokens=4]] conversation {conversation}"}]
    for at in range(number):
        messages += [
            {"role": "assistant", "content": f"answer {at}"},
            {"role": "user", "content": f"[[tokens=4]] {at}"},
        ]
    return (await one.ask({"model": model, "messages": messages, "stream": False}, path)).served


async def crowd(one):
    """Others take the card for a moment, while a small model is loaded: the chain moves down."""
    assert await turn(one, "chore", 0, SMALL) == SMALL
    one.sim.cards.set_foreign(0, 12000 * MIB)
    await asyncio.sleep(1.5)
    assert await turn(one, "newcomer", 0) == MIDDLE
    one.sim.cards.set_foreign(0, 0)
    await asyncio.sleep(1.5)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_conversation_keeps_its_model_when_its_chain_was_moved_down_for_others(path):
    """Sixteen turns of Open WebUI, with titles and tags by a small model; a newcomer stays with what is loaded."""

    async def story(one):
        served = []
        for number in range(TURNS):
            if number in (3, 9):
                await crowd(one)
            served.append(await turn(one, "first", number, path=path))
            assert await turn(one, f"title {number}", 0, SMALL) == SMALL
        await crowd(one)
        return served, await turn(one, "newcomer", 1)

    served, newcomer = play(story, CAREFUL)
    assert served == [BIG] * TURNS
    assert newcomer == MIDDLE


def test_only_the_conversations_that_were_served_last_are_remembered():
    """By a hash; other requests are no turns."""

    async def story(scene):
        def call(text, path="/api/chat", **body):
            return scene.call(LITTLE.name, path, messages=[{"role": "user", "content": text}], **body)

        found = Conversations(2)
        for text in ("one", "two", "one", "three"):
            found.note(call(text), text)
        found.note(scene.call(LITTLE.name, prompt="four"), "four")
        found.note(call("five", "/api/chat", options={}), "")
        assert [found.variant_of(call(text)) for text in ("one", "two", "three")] == ["", "", "three"]
        assert len(found._variants) == 2
        assert "three" not in repr(list(found._variants))
        none = Conversations(0)
        none.note(call("one"), "one")
        assert none.variant_of(call("one")) == ""

    routed(story, MemoryMachine(LITTLE))


def test_the_messages_of_a_request_are_hashed_once_whatever_asks_for_its_conversation():
    """Its decision and its end, on each of several backends."""

    async def story(scene):
        call = scene.call(LITTLE.name, "/api/chat", messages=[{"role": "user", "content": "hi"}])
        several = [Conversations(9) for _ in range(3)]
        with counted(beginning_of) as calls:
            for one in several:
                one.note(call, LITTLE.name)
                assert one.variant_of(call) == LITTLE.name
        assert len(calls) == 1

    routed(story, MemoryMachine(LITTLE))
