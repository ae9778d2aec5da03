"""When the garbage collector looks at what."""

import asyncio
import gc
import time
import weakref
from contextlib import suppress

import pytest

from ollama_simulator.clock import run_virtual
from router.cli.garbage import DUE, LOOK_S, QUIET_SHARE, WATCH_S, calm_collector, collect_when_quiet


@pytest.fixture(autouse=True)
def calm():
    before = gc.get_threshold()
    calm_collector()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_the_collector_looks_at_few_objects_at_a_time():
    """A reload of a thousand teams makes 200,000 of them beside the loop, which a collection stops."""
    young, middle, old = gc.get_threshold()
    assert young * middle <= 20_000
    assert young * middle * old >= 10_000_000


class Left:
    """What is left in a cycle."""


def left_among_old(looks):
    """Leave an object among the old ones, and look at the younger ones `looks` times."""
    one = Left()
    one.itself = one
    gc.collect(1)
    for _ in range(looks - 1):
        gc.collect(1)
    return weakref.ref(one)


async def collected(*others):
    tasks = [asyncio.create_task(one) for one in (collect_when_quiet(), *others)]
    await asyncio.sleep(LOOK_S + 2 * WATCH_S)
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


async def work():
    """Keep the loop busy for twice as long as is quiet."""
    while True:
        until_s = time.thread_time() + 2 * QUIET_SHARE * WATCH_S
        while time.thread_time() < until_s:
            pass
        await asyncio.sleep(WATCH_S / 2)


def test_what_is_left_among_old_objects_is_collected_while_there_is_little_to_do():
    left = left_among_old(DUE)
    assert left() is not None
    run_virtual(collected())
    assert left() is None


def test_the_whole_heap_is_not_looked_at_while_there_is_much_to_do():
    """It stops the router for tens of milliseconds."""
    left = left_among_old(DUE)
    run_virtual(collected(work()))
    assert left() is not None


def test_the_whole_heap_is_not_looked_at_while_there_is_little_new():
    left = left_among_old(DUE - 2)
    run_virtual(collected())
    assert left() is not None
