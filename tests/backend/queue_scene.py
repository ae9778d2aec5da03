"""Requests in the line of a backend that is watched."""

import asyncio

from tests.backend.machine import weights_of
from tests.backend.scene import play


class Queue:
    """Requests in the line of a scene."""

    def __init__(self, scene):
        self.scene, self.line, self.tasks = scene, scene.backend.line, []

    def join(self, *facts, **more):
        """Put a request for the chain of `facts` into the queue; return the task that waits."""
        now_s = asyncio.get_running_loop().time()
        key = (tuple(one.name for one in facts), *more.items())
        self.tasks.append(asyncio.create_task(self.line.wait(key, lambda: self.scene.decide(*facts, **more), now_s)))
        return self.tasks[-1]

    async def leave(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def in_line(story, machine, options=None, **more):
    """Run `story` with a queue before a backend that is watched; nobody is left in line."""

    async def run(scene):
        queue = Queue(scene)
        try:
            await story(scene, queue)
        finally:
            await queue.leave()
        assert queue.line.depth == 0

    bounded = {"queue.cost_factor": 0, **(options or {})}  # ten seconds, whatever a switch costs
    play(run, machine, bounded, is_watched=True, **more)


async def fill(scene, *facts):
    """Make models resident, each with a request in flight; their entries."""
    for one in facts:
        scene.machine.put(one)
    await scene.backend.world.refresh_fresh()
    return [scene.backend.world.residents.enter(weights_of(one)) for one in facts]
