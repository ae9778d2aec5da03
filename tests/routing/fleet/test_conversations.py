"""A conversation keeps its model on whichever backend its next turn is served."""

from __future__ import annotations

import asyncio

from router.core.units import MIB
from tests.config.keys.play import BIG, CHAIN, MIDDLE, SMALL
from tests.routing.fleet.stage import play


async def turn(one, conversation, model=BIG):
    messages = [{"role": "user", "content": f"[[tokens=4]] conversation {conversation}"}]
    status, backend, reply = await one.ask({"model": model, "messages": messages, "stream": False}, "/api/chat")
    assert status == 200
    return backend, reply.headers["x-router-model"]


def test_a_conversation_keeps_its_model_when_its_backend_goes_away():
    """Newcomers stay with the smaller one to which the chain has moved down on the other backend."""

    async def story(one):
        backend, model = await turn(one, "first")
        assert model == BIG
        other = "b" if backend == "a" else "a"
        await one.sims[backend].stop()
        await asyncio.sleep(5)
        assert await turn(one, "chore", SMALL) == (other, SMALL)
        one.sims[other].cards.set_foreign(0, 12000 * MIB)
        await asyncio.sleep(1.5)
        assert await turn(one, "newcomer") == (other, MIDDLE)
        one.sims[other].cards.set_foreign(0, 0)
        await asyncio.sleep(1.5)
        assert await turn(one, "another newcomer") == (other, MIDDLE)
        assert await turn(one, "first") == (other, BIG)

    play(story, {"a": (24564,), "b": (24564,)}, {**CHAIN, "defaults.upgrade_after_s": 600})
