"""Requests of the routing's tests under way."""

import asyncio
from contextlib import suppress


class Replies(list):
    """What a request taken at once was answered with."""

    def __call__(self, answer):
        self.append(answer)


async def dispatched(scene, call):
    """Dispatch `call` in a task, until it is sent or waits."""
    task = asyncio.create_task(scene.dispatcher.dispatch(call))
    await asyncio.sleep(0.01)
    return task


async def cancelled(task):
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
