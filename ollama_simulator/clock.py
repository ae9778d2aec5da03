"""Virtual time: an asyncio loop that jumps to the next timer instead of waiting for it.

Code that uses `loop.time()` and `asyncio.sleep` runs minutes of simulated time in milliseconds, always with the same
result. Sockets on this machine keep working: the loop polls them in front of each jump. While a thread of the executor
works (a file read, a name look-up, SQLite) or is being joined, time runs at its real speed, so a deadline around a
thread that hangs still expires. The loop does not know of threads that it did not start.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SETTLE_S = 0.001
"""Real seconds for the kernel to deliver bytes sent through loopback, allowed ahead of a jump longer than a tick."""

TICK_S = 0.02
"""Longest jump made without waiting for the kernel. Whether a token arrives one tick earlier does not matter."""


class _JumpingSelector(selectors.DefaultSelector):
    """Returns from `select` at once and advances the loop's clock by the time that it would have waited."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        super().__init__()
        self.now_s = 0.0
        self._busy = busy

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or self._busy():
            return self._wait_really(timeout)
        has_sockets = len(self.get_map()) > 1  # the loop's own wake-up pipe is always registered
        if has_sockets and timeout > TICK_S and (ready := super().select(SETTLE_S)):
            return ready
        if not self._busy():
            self.now_s += timeout
        return ready

    def _wait_really(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        started = time.monotonic()
        ready = super().select(timeout)
        self.now_s += time.monotonic() - started
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop whose `time()` starts at 0 and advances only while every task waits for a timer."""

    def __init__(self) -> None:
        self._threads_at_work = 0
        self._jumping = _JumpingSelector(lambda: self._threads_at_work > 0)
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As in asyncio; time does not jump until the work is done."""
        future = super().run_in_executor(executor, func, *args)
        self._threads_at_work += 1
        future.add_done_callback(self._work_done)
        return future

    async def shutdown_default_executor(self, *timeout_s: float | None, **timeout: float | None) -> None:
        """As in asyncio, which has no parameters before Python 3.12; the deadline is one of real seconds."""
        self._threads_at_work += 1  # the thread that ends the others is not one of the executor's
        try:
            await super().shutdown_default_executor(*timeout_s, **timeout)
        finally:
            self._work_done()

    def _work_done(self, _future: object = None) -> None:
        self._threads_at_work -= 1


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a fresh virtual clock and return its result (the virtual `asyncio.run`)."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
