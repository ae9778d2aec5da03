"""What most probes share: one reading for all who ask at once, and a thread that may hang."""

import asyncio
import threading

import pytest

from ollama_simulator.clock import run_virtual
from router.adapters.gpu.reading import CachedReading, DeadlineThread
from router.errors import ProbeError
from tests.core.facts import gpu_of
from tests.leftovers import errors_left, uncollected

CACHE_S, READ_S = 1.0, 2.0


class Driver:
    """Cards whose free memory falls by a GiB with each reading, which takes `READ_S`."""

    def __init__(self):
        self.reads, self.error = 0, None

    async def read_cards(self):
        self.reads += 1
        found = (gpu_of(free_gib=24 - self.reads),), ()
        await asyncio.sleep(READ_S)
        if self.error is not None:
            raise self.error
        return found


def on_driver(story):
    async def run():
        driver = Driver()
        cached = CachedReading(driver.read_cards, CACHE_S)
        await story(driver, cached)
        await cached.aclose()

    run_virtual(run())


def test_a_reading_is_used_again_for_a_while_and_counts_from_its_beginning():
    """What a driver says may be old when it arrives."""

    async def story(driver, cached):
        first = await cached.get()
        assert first.taken_at_s == 0
        assert await cached.get() is not first
        second = await cached.get(is_fresh=True)
        assert (driver.reads, second.taken_at_s) == (3, 4)

    on_driver(story)


def test_readings_in_vain_leave_no_error_for_the_garbage_collector():
    """asyncio's own error refers to the task that runs out of time, and the task to the error that it ends with."""

    async def late():
        async with asyncio.timeout(0.1):
            await asyncio.sleep(1)

    async def story():
        cached = CachedReading(late, CACHE_S)
        with uncollected():
            for _ in range(3):
                with pytest.raises(ProbeError):
                    await cached.get(is_fresh=True)
            return errors_left()

    assert run_virtual(story()) == []


def test_callers_at_once_share_one_reading_and_none_of_them_cuts_it():
    """One leaves."""

    async def story(driver, cached):
        asked = [asyncio.create_task(cached.get()) for _ in range(4)]
        await asyncio.sleep(1)
        asked[0].cancel()
        found = await asyncio.gather(*asked[1:])
        assert (driver.reads, len({id(one) for one in found})) == (1, 1)

    on_driver(story)


def test_a_fresh_reading_begins_after_the_call():
    """One under way may have seen an older state."""

    async def story(driver, cached):
        asked = asyncio.create_task(cached.get())
        await asyncio.sleep(1)
        fresh = await cached.get(is_fresh=True)
        assert ((await asked).taken_at_s, fresh.taken_at_s, driver.reads) == (0, READ_S, 2)

    on_driver(story)


def test_a_reading_that_fails_is_everybodys_error_and_the_next_one_tries_again():
    """Also one that nobody awaits any more."""

    async def story(driver, cached):
        driver.error = ProbeError("lost")
        for found in await asyncio.gather(cached.get(), cached.get(), return_exceptions=True):
            assert isinstance(found, ProbeError)
        leaving = asyncio.create_task(cached.get())
        await asyncio.sleep(1)
        leaving.cancel()
        await asyncio.sleep(READ_S)
        driver.error = None
        assert (await cached.get()).gpus

    on_driver(story)


def test_closing_cuts_a_reading_under_way():
    """Nobody waits for a driver when the router stops."""

    async def story(_, cached):
        asked = asyncio.create_task(cached.get())
        await asyncio.sleep(1)
        await cached.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await cached.aclose()

    on_driver(story)


def on_thread(story, timeout_s=30.0):
    """Run `story` with a thread in real time: a virtual clock does not know of it."""

    async def run():
        thread = DeadlineThread("driver", timeout_s)
        await story(thread)
        thread.close()

    asyncio.run(run())


def test_a_call_returns_or_raises_what_it_does_in_the_one_thread():
    """One call after the other."""

    def fails():
        raise OSError("gone")

    async def story(thread):
        assert {await thread.run(lambda: threading.current_thread().name) for _ in range(3)} == {"driver"}
        with pytest.raises(OSError, match="gone"):
            await thread.run(fails)
        assert await thread.run(lambda: 7) == 7

    on_thread(story)


async def once_free(thread, call):
    """Return what `call` returns as soon as the thread takes it."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await thread.run(call)
            except ProbeError:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [None, OSError("late")])
def test_a_call_that_hangs_is_given_up_and_holds_up_nobody_else(error):
    """Until it returns further calls are refused at once; what it returns at last is nobody's."""
    may_return = threading.Event()

    def hangs():
        may_return.wait(30)
        if error is not None:
            raise error

    async def story(thread):
        with pytest.raises(ProbeError, match="driver did not answer in 0.05 s"):
            await thread.run(hangs)
        with pytest.raises(ProbeError, match="driver still hangs in an earlier call"):
            await thread.run(lambda: 1)
        may_return.set()
        assert await once_free(thread, lambda: 1) == 1

    on_thread(story, timeout_s=0.05)


def test_a_caller_that_leaves_gets_nothing_and_breaks_nothing():
    """Its call ends in the thread, and the next one is served."""
    may_return = threading.Event()

    async def story(thread):
        asked = asyncio.create_task(thread.run(lambda: may_return.wait(30)))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        may_return.set()
        assert await once_free(thread, lambda: 1) == 1

    on_thread(story)
