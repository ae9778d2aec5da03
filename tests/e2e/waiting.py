"""Waiting for what other processes and machines do, of which nothing gives notice."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def until(is_so: Callable[[], bool | Awaitable[bool]], within_s: float = 120.0, every_s: float = 0.05) -> float:
    """Wait for a condition, and return how many seconds it took; fail after `within_s`."""
    began_s = time.monotonic()
    while True:
        found = is_so()
        if await found if inspect.isawaitable(found) else found:
            return time.monotonic() - began_s
        assert time.monotonic() < began_s + within_s
        await asyncio.sleep(every_s)


def until_now(is_so: Callable[[], bool], within_s: float, every_s: float = 0.02) -> None:
    """Do the same where no loop runs."""
    began_s = time.monotonic()
    while not is_so():
        assert time.monotonic() < began_s + within_s
        time.sleep(every_s)
