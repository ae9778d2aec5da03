"""Keeps long-lived work alive: what ends by a fault is logged, counted, and begun again after a pause."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

from router.telemetry.events import TaskFailed
from router.telemetry.hub import Telemetry

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""The pause after a fault doubles from the first to the longest."""

WELL_S = 60.0
"""Work that has gone on for so long since its last fault is well again."""


class Supervisor:
    """Runs pieces of work that are to go on until `stop`. A fault of one touches no other."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed_at_s: dict[str, float] = {}

    def keep(self, name: str, work: Callable[[], Awaitable[None]], about: str = "") -> None:
        """Begin `work`, and begin it again whenever it raises; if it returns, it is done. `name` is used once.

        Faults are counted by `name`, so it is one of few; `about` is which one of many it is, such as an address.
        """
        self._tasks[name] = asyncio.get_running_loop().create_task(
            self._run(name, work, about), name=f"{name} {about}".rstrip()
        )

    @property
    def failing(self) -> tuple[str, ...]:
        """The names of the work that has failed lately."""
        since_s = self._now() - WELL_S
        return tuple(name for name, failed_at_s in self._failed_at_s.items() if failed_at_s > since_s)

    def cancel(self) -> None:
        """Ask all work to end."""
        for task in self._tasks.values():
            task.cancel()

    async def stop(self) -> None:
        """End all work. Idempotent."""
        self.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    async def _run(self, name: str, work: Callable[[], Awaitable[None]], about: str) -> None:
        pause_s, last = FIRST_PAUSE_S, ""
        while True:
            began_s = self._now()
            try:
                await work()
            except (Exception, asyncio.CancelledError) as error:  # whatever it was: the next attempt may succeed
                if isinstance(error, asyncio.CancelledError) and _is_to_end():
                    raise
                if self._now() - began_s >= WELL_S:
                    pause_s, last = FIRST_PAUSE_S, ""
                fault = described(error)
                self._failed_at_s[name] = self._now()
                self._telemetry.emit(TaskFailed(name, fault, is_repeated=fault == last, about=about))
                last = fault
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _is_to_end() -> bool:
    """Return True if the task itself was cancelled, and not only something that its work waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def described(error: BaseException) -> str:
    """Return the error and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{error!r} at {frames[-1].filename}:{frames[-1].lineno}" if frames else repr(error)
