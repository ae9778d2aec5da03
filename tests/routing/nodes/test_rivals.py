"""Several fronts at one node: their requests meet in its one line."""

from __future__ import annotations

import asyncio

from tests.config.keys.play import BIG, OTHER, hello
from tests.routing.nodes.stage import call_for, play

FRONTS = 3


def test_models_that_do_not_fit_together_are_loaded_one_after_the_other_h4_n2():
    """Three fronts send both at the same moment, again and again: nothing spills, and no load is made twice."""

    async def story(node):
        for _ in range(4):
            asked = [
                node.ask(call_for(model, team=f"front-{front}"), hello(model))
                for front in range(FRONTS)
                for model in (BIG, OTHER)
            ]
            replies = await asyncio.gather(*asked)
            assert [reply.status for reply in replies] == [200] * len(asked)
        loads = node.one.loaded
        return len(loads) <= 2 * 4, any(load.is_spilled for load in loads), node.one.evictions

    assert play(story) == (True, False, [])


def test_fronts_that_want_the_same_cold_model_get_one_load_n1():
    """Each round it is cold again; whoever comes second waits for the load of the first."""

    async def story(node):
        counts = []
        for _ in range(5):
            before = len(node.one.loads)
            asked = [node.ask(call_for(BIG, team=f"front-{front}"), hello(BIG)) for front in range(FRONTS)]
            assert [reply.status for reply in await asyncio.gather(*asked)] == [200] * FRONTS
            counts.append(len(node.one.loads) - before)
            unload = {"model": BIG, "keep_alive": 0}
            assert (await node.ask(call_for(BIG), unload)).status == 200
            await asyncio.sleep(3)
            assert node.residents() == []
        return counts

    assert play(story) == [1] * 5


def test_teams_share_a_node_by_the_weights_of_their_calls():
    """Two teams that are in no file of it: the one with three times the share is served about three times as often."""

    async def story(node):
        assert (await node.ask(call_for(OTHER), hello(OTHER))).status == 200
        done, is_enough = {"a": 0, "b": 0}, asyncio.Event()

        async def one(team, share):
            reply = await node.ask(call_for(OTHER, team=team, share=share), hello(OTHER, tokens=100))
            assert reply.status == 200
            done[team] += 1
            if sum(done.values()) == 32:
                is_enough.set()

        asked = [asyncio.create_task(one(*team)) for _ in range(40) for team in (("a", 3.0), ("b", 1.0))]
        await is_enough.wait()
        found = done["a"] / done["b"]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return found

    assert 2 < play(story) < 4.5
