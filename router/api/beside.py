"""Work on large bodies: done in a thread beside the loop, one body after the other, so that no body stops the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

BYTES_PER_COMMA = 64
"""A body with more commas, or brackets, than one for so many of the bytes that are read inline counts as large, too."""

# One thread: several would only share Python's lock, and take it from the loop more often.
_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")


def is_large(body: bytes, inline_bytes: int) -> bool:
    """Return whether reading `body` takes long: it has more than `inline_bytes` or very many values."""
    most = inline_bytes // BYTES_PER_COMMA
    if len(body) <= 2 * most:
        return False
    return len(body) > inline_bytes or body.count(b",") > most or body.count(b"[") + body.count(b"{") > most


async def beside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `work` returns, called in the thread. It must not touch what belongs to the loop."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, partial(work, *args, **kwargs))


async def in_turn(
    body: bytes, inline_bytes: int, work: Callable[Concatenate[bytes, P], T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Return `work(body, …)`, called beside the loop if the body has more than `inline_bytes`."""
    if len(body) > inline_bytes:
        return await beside(work, body, *args, **kwargs)
    return work(body, *args, **kwargs)
