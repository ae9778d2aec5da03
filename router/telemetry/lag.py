"""Event loop lag: how late timers run, the first sign of a blocked loop."""

from __future__ import annotations

import asyncio

from router.telemetry.events import LoopLagged
from router.telemetry.hub import Telemetry


async def watch_loop_lag(telemetry: Telemetry, *, every_s: float = 0.5) -> None:
    """Emit a `LoopLagged` every `every_s` seconds until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + every_s
        await asyncio.sleep(every_s)
        telemetry.emit(LoopLagged(max(0.0, loop.time() - due_s)))
