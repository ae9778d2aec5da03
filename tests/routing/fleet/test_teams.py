"""Limits of teams count over all backends of a router."""

from __future__ import annotations

import asyncio

from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL
from tests.config.keys.test_team_limits import KEY, OTHER_KEY, as_team, limited
from tests.routing.fleet.stage import play

APART = {"a": (BIG, OTHER), "b": (MIDDLE, SMALL)}


def test_requests_that_wait_count_over_all_backends(tmp_path):
    """One waits on each for its load; the third is above the limit wherever it would go, and another team's is not."""

    async def story(one):
        waiting = [as_team(one, KEY, BIG), as_team(one, KEY, SMALL)]
        await asyncio.sleep(0.1)
        for model in (BIG, SMALL, MIDDLE):
            reply = await as_team(one, KEY, model)
            assert (reply.status, b"2 requests in the queue" in reply.body) == (429, True)
        waiting.append(as_team(one, OTHER_KEY, SMALL))
        assert [(await task).status for task in waiting] == [200] * 3
        assert (await as_team(one, KEY, BIG)).status == 200

    play(story, {"a": (24564,), "b": (8192,)}, limited(tmp_path, "{ waiting: 2 }"), models=APART)


def test_evictions_of_models_of_others_count_over_all_backends(tmp_path):
    """One on the first backend; that on the second has to wait until a minute is over."""

    async def story(one):
        loop = asyncio.get_running_loop()
        assert (await as_team(one, OTHER_KEY, OTHER)).status == 200
        assert (await as_team(one, OTHER_KEY, SMALL)).status == 200
        assert (await as_team(one, KEY, BIG)).status == 200
        evicted_s = loop.time()
        assert (await as_team(one, KEY, MIDDLE)).status == 200
        return loop.time() - evicted_s

    def played(limits):
        config = {**limited(tmp_path, limits), "queue.wait_s": 300}
        return play(story, {"a": (24564,), "b": (8192,)}, config, models=APART)

    assert played("{ evictions_per_minute: 2 }") < 40
    assert 50 < played("{ evictions_per_minute: 1 }") < 75
