"""The head of an answer, awaited by a task: the same for a request to an Ollama and for one that goes to a node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from router.errors import RouterError
from router.routing.answer import Answer
from router.routing.call import Call
from router.routing.dispatching import Begun
from router.routing.outcomes import Blocked
from router.routing.underway import Reply

Came = Answer | RouterError | Blocked | None
"""What `Reply` receives."""


async def head_of(call: Call, attempt: Callable[[Reply], Begun | Blocked]) -> Answer | Blocked | None:
    """Attempt once and await the head of the answer; None if the request is to be attempted again.

    Raises the error that came in place of an answer.
    """
    head: asyncio.Future[Came] = asyncio.get_running_loop().create_future()
    begun = attempt(partial(_settle, head))
    if isinstance(begun, Blocked):
        return begun
    try:
        came = await head
    except asyncio.CancelledError:
        # `reply` and the cancellation may have happened in the same turn of the loop: then the answer is released.
        late = None if head.cancelled() else head.result()
        if isinstance(late, Answer):
            late.release("client_gone" if call.is_gone() else "shutdown")
        else:
            begun.give_up(is_gone=call.is_gone())
        raise
    if isinstance(came, RouterError):
        try:
            raise came
        finally:
            del came, head, begun  # its traceback refers to this frame, and all three to the error
    return came


def _settle(head: asyncio.Future[Came], came: Came) -> None:
    """Pass on what came, unless the request was cancelled in the same turn of the loop: then it is given up."""
    if not head.done():
        head.set_result(came)
