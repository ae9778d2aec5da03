"""Work in the background that fails is logged, counted and begun again, and touches no other work."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from ollama_simulator.clock import run_virtual
from router.telemetry import Supervisor, TaskFailed, Telemetry
from router.telemetry.events import Event
from router.telemetry.supervisor import WELL_S

Story = Callable[[Supervisor, list[TaskFailed]], Awaitable[None]]


def play(story: Story) -> None:
    class Heard:
        def __init__(self) -> None:
            self.events: list[TaskFailed] = []

        def on(self, event: Event) -> None:
            assert isinstance(event, TaskFailed)
            self.events.append(event)

    async def run() -> None:
        heard = Heard()
        supervisor = Supervisor(Telemetry([heard]))
        await story(supervisor, heard.events)
        await supervisor.stop()

    run_virtual(run())


def failing(times_s: list[float], error: Exception) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        times_s.append(asyncio.get_running_loop().time())
        raise error

    return work


def test_work_that_fails_begins_again_after_pauses_that_double_up_to_thirty_seconds() -> None:
    """A fault that stays must not use the processor up."""

    async def story(supervisor: Supervisor, _heard: list[TaskFailed]) -> None:
        times_s: list[float] = []
        supervisor.keep("reader", failing(times_s, ValueError("x")))
        await asyncio.sleep(130)
        pauses = [round(after - before, 3) for before, after in itertools.pairwise(times_s)]
        assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]

    play(story)


def test_the_same_fault_is_told_as_repeated_and_another_one_is_not() -> None:
    """So that the log has one line for each fault; the place of the fault is part of it."""

    async def story(supervisor: Supervisor, heard: list[TaskFailed]) -> None:
        errors = iter([ValueError("x"), ValueError("x"), TypeError("y"), ValueError("x")])

        async def work() -> None:
            raise next(errors, RuntimeError("end"))

        supervisor.keep("reader", work)
        await asyncio.sleep(5)
        assert [(one.task, one.is_repeated) for one in heard] == [
            ("reader", False), ("reader", True), ("reader", False), ("reader", False)
        ]  # fmt: skip
        assert heard[0].error.startswith("ValueError('x') at ")
        assert "test_supervisor.py" in heard[0].error

    play(story)


def test_a_fault_touches_no_other_work_and_work_that_returns_is_done() -> None:
    """One ends by itself, one fails for ever, one goes on."""

    async def story(supervisor: Supervisor, heard: list[TaskFailed]) -> None:
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                await asyncio.sleep(1)
                ticks.append(1)

        async def once() -> None:
            ticks.append(100)

        supervisor.keep("fails", failing([], ValueError("x")))
        supervisor.keep("ticks", tick)
        supervisor.keep("once", once)
        await asyncio.sleep(10.5)
        assert sum(ticks) == 110
        assert {one.task for one in heard} == {"fails"}

    play(story)


def test_work_that_goes_on_for_a_minute_is_well_again() -> None:
    """The next fault is told anew, and its pause is the first one."""

    async def story(supervisor: Supervisor, heard: list[TaskFailed]) -> None:
        lasts_s = iter([0.0, 0.0, WELL_S + 1, WELL_S * 10])

        async def work() -> None:
            await asyncio.sleep(next(lasts_s))
            raise ValueError("x")

        supervisor.keep("reader", work)
        await asyncio.sleep(2)
        assert supervisor.failing == ("reader",)
        await asyncio.sleep(WELL_S + 1)
        assert [one.is_repeated for one in heard] == [False, True, False]
        await asyncio.sleep(WELL_S + 1)
        assert supervisor.failing == ()

    play(story)


def test_a_stop_ends_all_work_also_in_a_pause() -> None:
    """And may be asked for twice."""

    async def story(supervisor: Supervisor, heard: list[TaskFailed]) -> None:
        supervisor.keep("fails", failing([], ValueError("x")))
        supervisor.keep("sleeps", lambda: asyncio.sleep(1e6))
        await asyncio.sleep(20)
        await supervisor.stop()
        count = len(heard)
        await asyncio.sleep(100)
        assert len(heard) == count
        assert [task for task in asyncio.all_tasks() if task.get_name() in ("fails", "sleeps")] == []
        await supervisor.stop()

    play(story)


def test_work_that_waits_for_something_cancelled_begins_again_and_cancelled_work_does_not() -> None:
    """Only who cancels the work itself means that it is to end."""

    async def story(supervisor: Supervisor, heard: list[TaskFailed]) -> None:
        begun = 0

        async def work() -> None:
            nonlocal begun
            begun += 1
            other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if begun == 1:
                other.cancel()
            await other

        supervisor.keep("reader", work)
        await asyncio.sleep(1)
        assert (begun, [event.task for event in heard]) == (2, ["reader"])
        await supervisor.stop()
        assert (begun, len(heard)) == (2, 1)

    play(story)
