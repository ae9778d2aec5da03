"""A request that waits for its turn without a task."""

from __future__ import annotations

import asyncio
import gc

from router.routing.queued import Queued
from tests.backend.machine import SMALL, MemoryMachine
from tests.routing.scene import routed

OFTEN = 1500


def test_a_request_that_queues_again_and_again_can_be_given_up_and_keeps_only_its_last_wait():
    """Each turn is lost again: to a model that was unloaded meanwhile, for instance."""

    async def story(scene):
        call, turns, left = scene.call(SMALL.name), [], []

        def join():
            turns.append(asyncio.get_running_loop().create_future())
            number = len(turns)
            return Queued(call, turns[-1], lambda _: join(), lambda: left.append(number), lambda _: None)

        first = join()
        for _ in range(OFTEN):
            turns[-1].set_result("")
            await asyncio.sleep(0)
        assert len(turns) == OFTEN + 1
        gc.collect()
        assert sum(isinstance(one, Queued) for one in gc.get_objects()) < 10
        first.give_up()
        assert left == [OFTEN + 1]

    routed(story, MemoryMachine(SMALL))
