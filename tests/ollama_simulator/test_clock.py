"""The virtual clock jumps over waiting, never over work."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from ollama_simulator.clock import run_virtual


def test_sleeping_takes_no_time() -> None:
    """A day of timers runs in order, each at its exact time."""

    async def scenario() -> list[float]:
        loop, seen = asyncio.get_running_loop(), []
        for delay_s in (86400.0, 0.25, 3600.0):
            loop.call_later(delay_s, lambda: seen.append(loop.time()))
        await asyncio.sleep(90000)
        return seen

    assert run_virtual(scenario()) == pytest.approx([0.25, 3600.0, 86400.0])


def test_bytes_through_loopback_arrive_before_time_moves() -> None:
    """A response in transit is read ahead of the deadline around it."""

    async def scenario() -> tuple[bytes, float]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            await asyncio.sleep(100)
            writer.write(b"done")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"go\n")
        answer = await asyncio.wait_for(reader.read(), 101)
        writer.close()
        server.close()
        return answer, asyncio.get_running_loop().time()

    answer, took_s = run_virtual(scenario())
    assert answer == b"done"
    assert 100 <= took_s < 101


def test_time_does_not_jump_while_a_thread_works() -> None:
    """A distant deadline around short work in a thread does not expire."""

    async def scenario() -> float:
        await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.02), 10)
        return asyncio.get_running_loop().time()

    assert run_virtual(scenario()) < 5


def test_deadline_ends_a_thread_that_hangs() -> None:
    """Time runs at its real speed while a thread works, so the deadline expires."""
    done = threading.Event()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(done.wait), 0.05)
        done.set()

    run_virtual(scenario())


def test_end_of_the_executor_takes_real_time() -> None:
    """A thread that still works when its loop ends is awaited, and the time that this takes is the real one."""
    is_working = threading.Event()

    def work() -> None:
        is_working.set()
        time.sleep(0.05)

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        waiting = asyncio.create_task(asyncio.to_thread(work))
        while not is_working.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        started_s = loop.time()
        await loop.shutdown_default_executor(*([300.0] if sys.version_info >= (3, 12) else []))
        return loop.time() - started_s

    assert run_virtual(scenario()) < 60
