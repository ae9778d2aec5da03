"""A request that waits for its turn without a task."""

from __future__ import annotations

import asyncio
import gc

from router.backend.tickets import Ticket
from router.routing.queued import Queued
from tests.backend.machine import SMALL, MemoryMachine, weights_of
from tests.leftovers import uncollected
from tests.routing.requests_by_hand import Replies
from tests.routing.scene import routed

OFTEN = 1500


class InVain:
    """Attempts a request whose turn is lost each time: to a model that was unloaded meanwhile, for instance."""

    def __init__(self):
        self.count, self.left, self.go_on = 0, [], None

    def join(self, call):
        queued = Queued(self, call, lambda _: None)
        self.count, self.go_on = self.count + 1, queued.go_on
        queued.wait(self.count)
        return queued

    def again(self, call, _ticket, _reply):
        return self.join(call)

    def give_up(self, _call, ticket):
        self.left.append(ticket)


def test_a_request_that_queues_again_and_again_can_be_given_up_and_keeps_only_its_last_wait():
    """What it was let in to is said of each turn not to be used."""

    async def story(scene):
        call, driver = scene.call(SMALL.name), InVain()
        first = driver.join(call)
        for number in range(OFTEN):
            call.let_in("weights")
            assert not driver.go_on(number)
        assert driver.count == OFTEN + 1
        gc.collect()
        assert sum(isinstance(one, Queued) for one in gc.get_objects()) < 10
        first.give_up()
        assert driver.left == [OFTEN + 1]

    routed(story, MemoryMachine(SMALL))


def waits():
    return [one for one in gc.get_objects() if isinstance(one, (Queued, Ticket))]


def test_requests_that_have_waited_leave_nothing_for_the_garbage_collector():
    """Neither one that was served nor one that was given up: of a crowd it would take a part of all time."""

    async def story(scene):
        await scene.make_resident(SMALL)
        residents, holders, replies = scene.backend.world.residents, [], Replies()
        while scene.backend.line.may_enter(residents[weights_of(SMALL)]):
            holders.append(residents.enter(weights_of(SMALL)))
        with uncollected():
            of_others = waits()
            served, given_up = (scene.dispatcher.start(scene.call(SMALL.name, prompt="hi"), replies) for _ in range(2))
            assert [type(one) for one in (served, given_up)] == [Queued, Queued]
            given_up.give_up()
            scene.backend.leave(holders.pop())
            await asyncio.sleep(0.01)
            scene.relay.sent.pop().answer()
            replies.pop().release("completed")
            del served, given_up
            await asyncio.sleep(0.1)
            assert waits() == of_others
        for holder in holders:
            scene.backend.leave(holder)

    routed(story, MemoryMachine(SMALL))
