"""When Python's garbage collector looks for what is left behind: in small portions, or while there is little to do."""

from __future__ import annotations

import asyncio
import gc
import time

YOUNG = 4_000
"""New objects after which those among them that are garbage are collected, in a few milliseconds."""

PORTIONS, RARELY = 5, 2_000
"""So many times `YOUNG` objects are looked at once more; after so many times of that, the whole heap is."""

LOOK_S, DUE = 60.0, 5
"""How often to see whether the whole heap is worth looking at: it is when `DUE` times `PORTIONS` have been."""

WATCH_S, QUIET_SHARE = 1.0, 0.05
"""The loop has little to do if it works for no more than this share of that time."""


def calm_collector() -> None:
    """Make Python's garbage collector look at the whole heap rarely, and exclude the objects that exist now.

    A request leaves no reference cycles behind. With Python's defaults the collector would scan the whole heap several
    times a second under load: an eighth of the time, in pauses of 40 ms. Young objects are looked at in small portions:
    what fails may leave cycles, and 50,000 objects in them took up to 90 ms to free. A thousand teams are
    200,000 objects, which a reload makes: of these 20,000 at a time take 4 ms. What was excluded before is looked at
    once more, because the router that the last reload has replaced is garbage by now.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, PORTIONS, RARELY)


async def collect_when_quiet() -> None:
    """Look at the whole heap from time to time, while the loop has little to do. Never returns.

    Each connection that was open for a while leaves seven objects in a cycle (asyncio's transport, before Python 3.12):
    in weeks these would be millions, and freeing them at once would stop the router for seconds.
    """
    while True:
        await asyncio.sleep(LOOK_S)
        if gc.get_count()[2] >= DUE and await _is_quiet():
            gc.collect()


async def _is_quiet() -> bool:
    began_s = time.thread_time()
    await asyncio.sleep(WATCH_S)
    return time.thread_time() - began_s <= WATCH_S * QUIET_SHARE
