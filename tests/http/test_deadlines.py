"""One sweep for many deadlines."""

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from router.http.deadlines import NEVER, Deadlines


class Waiter:
    """A member; `expired` are the loop times of its ends, and `then` what its end does."""

    def __init__(self, deadline, then=lambda: None):
        self.deadline, self.then, self.expired = deadline, then, []

    def expire(self):
        self.expired.append(asyncio.get_running_loop().time())
        self.deadline = NEVER
        self.then()


def swept(story):
    async def run():
        await story(Deadlines(0.5))

    run_virtual(run())


def test_a_deadline_that_has_passed_expires_once_and_not_early():
    """At most one interval late."""

    async def story(deadlines):
        soon, late, never = Waiter(1.2), Waiter(5.0), Waiter(NEVER)
        for member in (soon, late, never):
            deadlines.add(member)
        await asyncio.sleep(10)
        assert 1.2 <= soon.expired[0] <= 1.7
        assert 5.0 <= late.expired[0] <= 5.5
        assert (len(soon.expired), len(late.expired), never.expired) == (1, 1, [])

    swept(story)


def test_a_member_that_gets_more_time_by_anothers_end_does_not_expire():
    """In the same sweep."""

    async def story(deadlines):
        members = []

        def spare_the_others():
            for member in members:
                member.deadline = NEVER

        members += [Waiter(1.0, spare_the_others), Waiter(1.0, spare_the_others)]
        for member in members:
            deadlines.add(member)
        await asyncio.sleep(3)
        assert sorted(len(member.expired) for member in members) == [0, 1]

    swept(story)


def test_without_members_nothing_runs():
    """No timer keeps an idle loop awake."""

    async def story(deadlines):
        members = [Waiter(NEVER), Waiter(NEVER)]
        for member in members:
            deadlines.add(member)
        deadlines.discard(members[0])
        assert deadlines._timer is not None
        deadlines.discard(members[1])
        deadlines.discard(members[1])
        assert deadlines._timer is None

    swept(story)


@pytest.mark.parametrize(("limits", "late"), [((10.0, 75.0), 0.5), ((0.4, 75.0), 0.1), ((0.001,), 0.01)])
def test_a_short_limit_is_swept_more_often(limits, late):
    """At most a quarter of it late, and never without pause."""
    assert Deadlines.of(*limits)._interval_s == pytest.approx(late)


def stand_still(seconds):
    """Let the clock go on as if the process had been stopped."""
    asyncio.get_running_loop()._selector.now_s += seconds


def test_what_has_come_while_the_process_stood_still_is_read_before_anybody_expires():
    """It is read in a later step of the loop, as a new connection's first bytes are."""

    async def story(deadlines):
        member = Waiter(1.0)
        deadlines.add(member)
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, stand_still, 5.0)
        loop.call_later(0.6, lambda: setattr(member, "deadline", NEVER))
        await asyncio.sleep(10)
        assert member.expired == []

    swept(story)


def test_a_process_that_is_always_late_still_expires():
    async def story(deadlines):
        member = Waiter(1.0)
        deadlines.add(member)
        for _ in range(20):
            await asyncio.sleep(0.01)
            stand_still(2.0)
        assert len(member.expired) == 1

    swept(story)
