"""How many requests go into one runner, and how it shows that it takes more."""

import asyncio
from types import SimpleNamespace

import pytest

from ollama_simulator.clock import run_virtual
from router.backend.slots import CONFIRM_S, SURELY_S, RunnerSlots, Slots
from router.core.ollama.options import ServerSettings
from tests.core.facts import facts_of

CHATS = facts_of("chats:8b", 8)
ONE_SLOT = facts_of("one:8b", 8, family="qwen3vl")
EMBEDS = facts_of("embeds:1b", 1, capabilities=frozenset({"embedding"}))


class Sent:
    """An answer on its way."""

    def __init__(self):
        self.is_complete = False


class Runner:
    """A runner with `in_flight` requests."""

    def __init__(self, facts=CHATS, in_flight=0, order=1):
        self.weights, self.order, self.in_flight, self.slots = facts.name, order, in_flight, RunnerSlots()


def slots_of(num_parallel=1, ahead=1):
    """Return the slots of a server, and the runners that showed a further one."""
    models, more = {facts.name: facts for facts in (CHATS, ONE_SLOT, EMBEDS)}, []
    settings = ServerSettings(num_parallel=num_parallel)
    return SimpleNamespace(slots=Slots(ahead, lambda: settings, models.get, more.append), more=more)


def virtual(story):
    async def run():
        await story()

    run_virtual(run())


@pytest.mark.parametrize(
    ("facts", "num_parallel", "ahead", "room"),
    [(CHATS, 1, 1, 2), (CHATS, 4, 1, 5), (CHATS, 4, 0, 4), (ONE_SLOT, 4, 1, 2), (EMBEDS, 4, 1, 2), (CHATS, 2, 3, 5)],
)
def test_a_runner_takes_as_many_requests_as_ollama_answers_at_once_and_those_ahead(facts, num_parallel, ahead, room):
    """Some families, and models that only embed, have one slot whatever OLLAMA_NUM_PARALLEL says."""

    async def story():
        slots = slots_of(num_parallel, ahead).slots
        assert [slots.is_free(Runner(facts, taken)) for taken in (room - 1, room)] == [True, False]
        assert not slots.is_free(Runner(facts, room - 1), reserved=1)

    virtual(story)


def test_an_answer_that_has_arrived_leaves_its_slot_though_its_client_still_reads():
    """A slow client must not hold up the model."""

    async def story():
        slots, runner, sent = slots_of().slots, Runner(in_flight=2), Sent()
        runner.slots.send(sent, asyncio.get_running_loop().time())
        slots.answered(runner, sent)
        assert not slots.is_free(runner)
        sent.is_complete = True
        assert slots.is_free(runner)

    virtual(story)


async def begun(slots, runner, *, answered=True):
    """One more request to the runner, whose answer has begun."""
    sent = Sent()
    runner.in_flight += 1
    assert slots.is_free(runner, -1)
    runner.slots.send(sent, asyncio.get_running_loop().time())
    if answered:
        slots.answered(runner, sent)
    return sent


def test_an_answer_that_begins_while_the_others_are_at_work_shows_a_further_slot():
    """Each time one, and the next runner of the server starts with as many."""

    async def story():
        server, runner = slots_of(), Runner()
        for count in (1, 2, 3):
            await begun(server.slots, runner)
            await asyncio.sleep(2 * CONFIRM_S)
            assert runner.slots.count == count
        assert server.more == [runner, runner]
        assert server.slots.is_free(Runner(in_flight=3))
        assert not server.slots.is_free(Runner(EMBEDS, in_flight=2))
        server.slots.forget()
        assert not server.slots.is_free(Runner(in_flight=2))

    virtual(story)


def test_the_end_of_an_answer_that_is_read_after_the_begin_of_the_next_shows_nothing():
    """The runner has one slot: the two were never at work at the same time."""

    async def story():
        server, runner = slots_of(), Runner()
        first = await begun(server.slots, runner)
        await begun(server.slots, runner)
        await asyncio.sleep(CONFIRM_S / 2)
        runner.slots.end(first)
        await asyncio.sleep(CONFIRM_S)
        assert (runner.slots.count, server.more) == (1, [])

    virtual(story)


@pytest.mark.parametrize(("earlier_s", "count"), [(0.5 * SURELY_S, 1), (1.5 * SURELY_S, 2)])
def test_who_was_answered_before_one_that_was_sent_long_before_was_answered_beside_it(earlier_s, count):
    """Answers that are not streamed begin with their end: the order in which Ollama lets requests in tells."""

    async def story():
        server, runner = slots_of(), Runner()
        await begun(server.slots, runner, answered=False)
        await asyncio.sleep(earlier_s)
        await begun(server.slots, runner)
        await asyncio.sleep(2 * CONFIRM_S)
        assert runner.slots.count == count

    virtual(story)


def test_nothing_is_concluded_about_a_runner_that_was_loaded_anew_meanwhile():
    """It may have another number."""

    async def story():
        server, runner = slots_of(), Runner()
        await begun(server.slots, runner)
        await begun(server.slots, runner)
        runner.order, runner.slots.count = 2, 0
        await asyncio.sleep(2 * CONFIRM_S)
        assert server.more == []

    virtual(story)


def test_the_pace_is_the_mean_time_between_two_ends_while_others_wait():
    """Not the time in which nobody waited."""

    async def story():
        slots = RunnerSlots()
        for now_s in (1.0, 3.0, 5.0):
            slots.ended(now_s)
        assert slots.gap_s == pytest.approx(2.0)
        slots.pause()
        slots.ended(1000.0)
        assert slots.gap_s == pytest.approx(2.0)

    virtual(story)


def test_while_answers_are_short_more_are_ahead_but_never_for_longer_than_a_moment():
    """A runner must not wait for the router between two embeddings; one long answer ends that."""

    async def story():
        slots = RunnerSlots()
        assert slots.ahead == 0
        for _ in range(100):
            slots.took(0.001)
        assert slots.ahead == 100 // 8
        for _ in range(1000):
            slots.took(0.05)
        assert slots.ahead == 5
        slots.took(2.0)
        assert slots.ahead == 0

    virtual(story)
