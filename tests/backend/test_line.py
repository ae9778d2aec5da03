"""The line in front of one backend: who waits, who is let in, who is refused."""

import asyncio
from contextlib import suppress

import pytest

from router.errors import Busy
from router.telemetry import QueueChanged
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.queue_scene import fill, in_line
from tests.backend.scene import took_s

ALL = (BIG, MIDDLE, SMALL)


def test_a_request_waits_for_the_load_of_its_model_and_is_let_in_to_it():
    """Everybody who waits for it is, after one load."""

    async def story(scene, queue):
        tasks = [queue.join(SMALL) for _ in range(3)]
        assert await asyncio.gather(*tasks) == [weights_of(SMALL)] * 3
        assert len(scene.machine.named("load")) == 1

    in_line(story, MemoryMachine(*ALL))


def test_the_depth_of_the_line_is_reported_a_moment_after_it_has_changed():
    """Once for all that join or leave together."""

    async def story(scene, queue):
        tasks = [queue.join(SMALL) for _ in range(3)]
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.1)
        assert [event.depth for event in scene.heard.of(QueueChanged)] == [3, 0]

    in_line(story, MemoryMachine(*ALL))


def test_a_request_that_nothing_can_serve_leaves_the_line_at_once():
    """It is let in to nothing, to be refused with reasons."""

    async def story(scene, queue):
        scene.machine.foreign[0] = 23 << 30
        await scene.backend.world.refresh_fresh()
        assert await queue.join(BIG) == ""

    in_line(story, MemoryMachine(*ALL))


def test_requests_that_ask_for_the_same_are_decided_once_each_time_the_rules_are_applied():
    """A long line must not cost a decision per ticket."""

    async def story(scene, queue):
        decided = []

        def decide():
            decided.append(True)
            return scene.decide(SMALL)

        await fill(scene, BIG)
        for _ in range(20):
            queue.tasks.append(asyncio.create_task(queue.line.wait("same", decide, 0.0)))
        await asyncio.sleep(0)
        decided.clear()
        queue.line.pump()
        assert len(decided) == 1

    in_line(story, MemoryMachine(*ALL))


def test_a_full_line_refuses_the_next_one_at_once():
    """In Ollama's own words, with a time after which to try again."""

    async def story(_scene, queue):
        waiting = [queue.join(SMALL), queue.join(SMALL)]
        await asyncio.sleep(0.1)
        with pytest.raises(Busy, match="maximum pending requests exceeded") as refused:
            await queue.join(SMALL)
        assert refused.value.retry_after_s >= SMALL.size_bytes / (1 << 30)
        assert await asyncio.gather(*waiting) == [weights_of(SMALL)] * 2

    in_line(story, MemoryMachine(*ALL), {"queue.max_waiting": 2})


def test_who_waits_too_long_is_refused_with_the_time_and_the_place_in_line():
    """Each after its own wait; the oldest stands first."""

    async def story(scene, queue):
        await fill(scene, BIG)
        first = queue.join(MIDDLE)
        await asyncio.sleep(1)
        second = queue.join(MIDDLE)
        took, found = await took_s(asyncio.gather(first, return_exceptions=True))
        assert (took, str(found[0])) == (29, "server busy: queued for 30 s, position 1")
        with pytest.raises(Busy, match="queued for 30 s, position 1") as refused:
            await second
        assert asyncio.get_running_loop().time() == 31
        assert refused.value.retry_after_s >= 1

    in_line(story, MemoryMachine(*ALL), {"queue.wait_s": 30})


def test_requests_that_join_after_their_deadline_do_not_postpone_the_refusal_of_others():
    """They come again and again, sooner than the time for which each of them is spared."""

    async def story(scene, queue):
        await fill(scene, BIG)
        first = queue.join(MIDDLE)
        await asyncio.sleep(29.9)
        for _ in range(200):
            queue.tasks.append(asyncio.create_task(queue.line.wait("late", lambda: scene.decide(SMALL, MIDDLE), -99.0)))
            await asyncio.sleep(0.005)
        assert first.done()
        assert "queued for 30 s" in str(first.exception())

    in_line(story, MemoryMachine(*ALL), {"queue.wait_s": 30})


def test_the_load_of_its_own_model_does_not_count_against_a_request():
    """It is on its way: the request waits on, for as long as that load takes."""
    machine = MemoryMachine(*ALL)
    machine.load_s = 100.0

    async def story(_scene, queue):
        took, weights = await took_s(queue.join(SMALL))
        assert weights == weights_of(SMALL)
        assert took >= 100

    in_line(story, machine, {"queue.wait_s": 30})


def test_the_load_of_another_model_counts():
    """Nobody knows when the own turn comes; who came earlier stands in front."""
    machine = MemoryMachine(*ALL)
    machine.load_s = 100.0

    async def story(_scene, queue):
        queue.join(BIG)
        await asyncio.sleep(0.1)
        took, found = await took_s(asyncio.gather(queue.join(MIDDLE), return_exceptions=True))
        assert (took, str(found[0])) == (30, "server busy: queued for 30 s, position 2")

    in_line(story, machine, {"queue.wait_s": 30})


def test_a_request_that_is_cancelled_is_out_of_the_line_at_once():
    """What was closed for its sake opens again, and a switch for nobody is not made."""

    async def story(scene, queue):
        (holder,) = await fill(scene, BIG)
        waiting = queue.join(MIDDLE)
        await asyncio.sleep(11)
        assert not queue.line.may_enter(scene.backend.world.residents[weights_of(BIG)])
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert queue.line.depth == 0
        assert queue.line.may_enter(scene.backend.world.residents[weights_of(BIG)])
        scene.backend.leave(holder)
        await asyncio.sleep(5)
        assert list(scene.machine.rows) == [BIG.name]

    in_line(story, MemoryMachine(*ALL))


def test_a_decision_that_fails_leaves_nobody_in_line():
    """The error is the request's own."""

    async def story(_scene, queue):
        def decide():
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await queue.line.wait("key", decide, 0.0)

    in_line(story, MemoryMachine(*ALL))


def test_waiting_requests_are_wanted_by_the_weights_that_they_wait_for():
    """Plans spare what is wanted."""

    async def story(scene, queue):
        await fill(scene, BIG)
        for _ in range(2):
            queue.join(MIDDLE)
        await asyncio.sleep(0.1)
        assert scene.backend.world.wanted == {weights_of(MIDDLE): 2}
        await queue.leave()
        assert scene.backend.world.wanted == {}

    in_line(story, MemoryMachine(*ALL))


def test_a_switch_starts_as_soon_as_the_last_request_to_what_is_in_its_way_has_ended():
    """Nothing else has to happen."""

    async def story(scene, queue):
        (holder,) = await fill(scene, BIG)
        waiting = queue.join(MIDDLE)
        await asyncio.sleep(1)
        assert scene.machine.named("unload") == []
        scene.backend.leave(holder)
        assert await waiting == weights_of(MIDDLE)

    in_line(story, MemoryMachine(*ALL))


def test_at_the_age_bound_what_is_in_the_way_takes_no_new_requests():
    """Its timer is the line's own: no request and no reading is needed."""

    async def story(scene, queue):
        (holder,) = await fill(scene, BIG)
        queue.join(MIDDLE)
        await asyncio.sleep(9.9)
        assert queue.line.may_enter(scene.backend.world.residents[weights_of(BIG)])
        await asyncio.sleep(0.2)
        assert not queue.line.may_enter(scene.backend.world.residents[weights_of(BIG)])
        scene.backend.leave(holder)

    in_line(story, MemoryMachine(*ALL), {"snapshot.ps_interval_s": 1000, "snapshot.probe_interval_s": 1000})


def test_what_a_request_was_just_let_in_to_is_not_evicted_under_it():
    """Between its turn and its entry others leave and come: no switch starts in between."""

    async def story(scene, queue):
        await scene.make_resident(BIG)
        holder = scene.backend.world.residents.enter(weights_of(BIG))
        impatient = queue.join(MIDDLE)
        await asyncio.sleep(11)
        let_in = queue.join(BIG)
        await asyncio.sleep(1)
        assert not let_in.done()
        impatient.cancel()
        asyncio.get_running_loop().call_soon(scene.backend.leave, holder)
        other = queue.join(MIDDLE)
        assert await let_in == weights_of(BIG)
        holder = scene.backend.world.residents.enter(weights_of(BIG))
        assert (queue.line.is_switching, queue.line.depth) == (False, 1)
        scene.backend.leave(holder)
        assert await other == weights_of(MIDDLE)

    in_line(story, MemoryMachine(*ALL))


def test_a_request_that_came_due_is_let_in_to_what_others_have_closed():
    """Its model was loaded while it waited: it is served before it goes again."""
    machine = MemoryMachine(*ALL)
    machine.load_s = 30.0

    async def story(scene, queue):
        one, other = queue.join(BIG), queue.join(MIDDLE)
        assert await one == weights_of(BIG)
        holder = scene.backend.world.residents.enter(weights_of(BIG))
        assert not queue.line.may_enter(scene.backend.world.residents[weights_of(BIG)])
        scene.backend.leave(holder)
        assert await other == weights_of(MIDDLE)

    in_line(story, machine)


def counting(scene, asked, *facts):
    """Return what decides for these models, and says so in `asked`."""

    def decide():
        asked.append(facts)
        return scene.decide(*facts)

    return decide


class Waiting:
    """A request that waits without a task, and enters the resident that it is let in to."""

    def __init__(self, scene, queue, key, decide, since_s):
        self.scene, self.entered = scene, asyncio.get_running_loop().create_future()
        self.ticket = queue.line.join(key, decide, since_s, go_on=self._go_on)

    def _go_on(self, ticket):
        assert (ticket.weights, ticket.error) == (weights_of(SMALL), None)
        self.entered.set_result(self.scene.backend.world.residents.enter(ticket.weights))
        return True


async def let_in(scene, waiting, holder):
    """End the request of `holder`, whose slot is the next one's; return the entry that this one uses."""
    await asyncio.sleep(0.01)
    assert not waiting.entered.done()
    scene.backend.leave(holder)
    return await waiting.entered


def test_one_after_the_other_in_front_of_a_busy_model_is_decided_once():
    """Nothing has changed in between, so the decision of the one before it holds."""

    async def story(scene, queue):
        await scene.make_resident(SMALL)
        holders, asked = [scene.backend.world.residents.enter(weights_of(SMALL)) for _ in range(2)], []
        for _ in range(5):
            waiting = Waiting(scene, queue, "same", counting(scene, asked, SMALL), 0.0)
            holders.append(await let_in(scene, waiting, holders.pop()))
        assert len(asked) == 1
        scene.backend.world.epoch.advance()
        waiting = Waiting(scene, queue, "same", counting(scene, asked, SMALL), 0.0)
        assert len(asked) == 2
        await let_in(scene, waiting, holders.pop())

    in_line(story, MemoryMachine(*ALL))


def test_who_asks_for_something_new_of_a_busy_model_is_decided_alone():
    """Not all that wait beside it."""

    async def story(scene, queue):
        await scene.make_resident(SMALL)
        holders, asked = [scene.backend.world.residents.enter(weights_of(SMALL)) for _ in range(2)], []
        crowd = [Waiting(scene, queue, key, counting(scene, asked, SMALL), key) for key in range(20)]
        assert len(asked) == 20
        for waiting in crowd:
            holders.append(await let_in(scene, waiting, holders.pop()))

    in_line(story, MemoryMachine(*ALL))


def test_a_request_whose_turn_is_given_up_as_it_comes_leaves_it_to_the_next_one():
    """It was let in, and its client left in the same moment."""

    async def story(scene, queue):
        await scene.make_resident(SMALL)
        holders = [scene.backend.world.residents.enter(weights_of(SMALL)) for _ in range(2)]
        first, second = (Waiting(scene, queue, "key", lambda: scene.decide(SMALL), since_s) for since_s in (0.0, 1.0))
        scene.backend.leave(holders.pop())
        assert first.ticket.let_in_to == weights_of(SMALL)
        queue.line.give_up(first.ticket)
        await asyncio.wait_for(second.entered, 0.1)
        assert (queue.line.depth, first.entered.done()) == (0, False)

    in_line(story, MemoryMachine(*ALL))


def test_many_that_wait_too_long_are_refused_in_one_go_each_with_its_place():
    """One timer is enough for all deadlines."""

    async def story(scene, queue):
        await fill(scene, BIG)
        waiting = [queue.join(MIDDLE) for _ in range(3)]
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [(type(error), error.position) for error in found] == [(Busy, 1), (Busy, 2), (Busy, 3)]
        assert asyncio.get_running_loop().time() == pytest.approx(30)

    in_line(story, MemoryMachine(*ALL), {"queue.wait_s": 30})


def test_t7_with_a_thousand_waiting_for_a_resident_a_request_that_ends_decides_for_nobody():
    """It costs the same as with one: the next one of those in line gets the slot, whatever they ask for."""

    async def story(scene, queue):
        await scene.make_resident(SMALL)
        holders = [scene.backend.world.residents.enter(weights_of(SMALL)) for _ in range(2)]
        decided, turns, entered = [], [], asyncio.Event()

        async def ask(number):
            def decide():
                decided.append(number)
                return scene.decide(SMALL)

            assert await queue.line.wait(number % 100, decide, number * 1e-6) == weights_of(SMALL)
            turns.append(number)
            holders.append(scene.backend.world.residents.enter(weights_of(SMALL)))
            entered.set()

        queue.tasks += [asyncio.create_task(ask(number)) for number in range(1000)]
        await asyncio.sleep(0)
        decided.clear()
        for _ in range(500):
            entered.clear()
            scene.backend.leave(holders.pop())
            await entered.wait()
        assert (decided, turns, queue.line.depth) == ([], list(range(500)), 500)

    in_line(story, MemoryMachine(*ALL), {"queue.max_waiting": 1000})


def test_a_request_that_never_uses_its_turn_does_not_keep_the_router_busy():
    """It gets another one after a pause, in which it keeps its slot."""

    async def story(scene, queue):
        await scene.make_resident(SMALL)
        turns, turn = 0, weights_of(SMALL)
        until_s = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < until_s:
            turn = await queue.line.wait("key", lambda: scene.decide(SMALL), 0.0, unused=turn)
            turns += 1
        assert 90 <= turns <= 110

    in_line(story, MemoryMachine(*ALL))


def test_a_request_that_does_not_use_its_turn_is_not_let_in_again_by_the_decision_of_before():
    """With time alone another variant can become better: then it waits for that one, while others of its kind wait."""

    async def story(scene, queue):
        await fill(scene, MIDDLE)
        await scene.make_resident(SMALL)
        holders = [scene.backend.world.residents.enter(weights_of(SMALL)) for _ in range(2)]
        wanted, turns = [SMALL], []

        async def ask(number):
            turn = ""
            while True:
                turn = await queue.line.wait("same", lambda: scene.decide(*wanted), number, unused=turn)
                turns.append((number, turn))
                assert len(turns) < 10, "let in again and again, without a pause for anybody else"
                if turn == weights_of(wanted[0]):
                    return turn

        asking = [asyncio.create_task(ask(number)) for number in range(3)]
        queue.tasks += asking
        await asyncio.sleep(0)
        wanted[:] = [BIG]
        scene.backend.leave(holders.pop())
        await asyncio.sleep(1)
        assert turns == [(0, weights_of(SMALL))]
        assert queue.line.depth == 3

    in_line(story, MemoryMachine(*ALL))
