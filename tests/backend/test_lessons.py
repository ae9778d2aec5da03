"""What loads have taught: remembered at once, written in the background, recalled at the next start."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from router.adapters.store import MemoryStore
from router.backend.lessons import MOST_OBSERVATIONS, Lessons
from router.core.decision.need import memory_options
from router.core.decision.switching import Plan
from router.core.memory.footprint import footprint
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from router.errors import RouterError
from router.telemetry import Measured, Notified, Telemetry
from tests.backend.machine import BIG, EMBEDDER, MIDDLE, SMALL, row_of
from tests.backend.scene import UNIX_S, Heard
from tests.core.facts import gpu_of

SETTINGS = ServerSettings(num_parallel=2, kv_type="q8_0", version="0.33.0")
PLAN = Plan(
    LoadOptions(num_ctx=8192, num_batch=512, main_gpu=1), (), (), (1,), 5 * GIB, 9 * GIB, (5 * GIB,), 3 * GIB, 1000
)
CARDS = (gpu_of(0, free_gib=20), gpu_of(1, free_gib=9))


class SlowStore(MemoryStore):
    """Each write takes a second, and may fail."""

    error = None

    async def put(self, observation):
        await asyncio.sleep(1)
        if self.error is not None:
            raise self.error
        await super().put(observation)


class School:
    """Lessons under test with what they tell and keep."""

    def __init__(self, store=None):
        self.heard, self.store = Heard(), store or MemoryStore()
        self.lessons = Lessons(self.store, lambda: SETTINGS, Telemetry([self.heard]), lambda: UNIX_S)

    def learn(self, *, plan=PLAN, before=CARDS, taken=4 * GIB, spilled=False, row=None):
        self.lessons.learn(SMALL, plan, row or row_of(SMALL), before, taken_bytes=taken, is_spilled=spilled)
        return self.lessons.learned.by_weights[SMALL.weights][-1]


def test_a_load_is_learned_as_it_was_planned_and_measured(virtual):
    """With the cards of its plan only, as they were before it."""

    async def story():
        seen = School().learn()
        assert (seen.weights, seen.num_ctx, seen.num_batch, seen.main_gpu) == (SMALL.weights, 8192, 512, 1)
        assert (seen.num_parallel, seen.kv_type, seen.ollama_version) == (2, "q8_0", "0.33.0")
        assert (seen.gpu_names, seen.free_before_bytes) == (("card",), 9 * GIB)
        assert (seen.measured_bytes, seen.predicted_bytes, seen.cache_bytes) == (4 * GIB, 3 * GIB, 1000)
        assert (seen.size_bytes, seen.size_vram_bytes, seen.spilled, seen.at_s) == (
            *2 * (SMALL.size_bytes,),
            False,
            UNIX_S,
        )

    virtual(story)


def test_where_options_are_left_to_ollama_what_was_counted_is_learned(virtual):
    """The context that ps shows where none was counted."""

    async def story():
        school = School()
        counted = LoadOptions(num_ctx=16384, num_batch=2048)
        automatic = Plan(LoadOptions(), (), (), (0,), 1, 1, (1,), counted=counted)
        assert school.learn(plan=automatic).num_ctx == 16384
        adopted = Plan(LoadOptions(), (), (), (), 0, 0)
        seen = school.learn(plan=adopted, before=None, row=row_of(SMALL, num_ctx=4096))
        assert (seen.num_ctx, seen.gpu_names, seen.free_before_bytes) == (4096, (), 0)

    virtual(story)


@pytest.mark.parametrize(("taken", "spilled"), [(0, False), (GIB, True)], ids=["not seen", "spilled"])
def test_what_was_not_measured_or_spilled_is_learned_but_not_reported_as_measured(taken, spilled, virtual):
    """The error of the estimate would be wrong."""

    async def story():
        school = School()
        assert school.learn(taken=taken, spilled=spilled).spilled is spilled
        assert school.heard.events == []
        school.learn()
        assert school.heard.events == [Measured(SMALL.name, 3 * GIB, 4 * GIB)]

    virtual(story)


def test_what_is_known_is_replaced_and_never_changed(virtual):
    """Decisions hold on to it while they are made."""

    async def story():
        school = School()
        before = school.lessons.learned
        school.learn()
        assert before.by_weights == {}
        assert school.lessons.learned is not before

    virtual(story)


def test_a_slow_or_broken_store_delays_and_breaks_nothing(virtual):
    """Memory knows at once; the store follows."""

    async def story():
        school = School(SlowStore())
        school.learn()
        assert await school.store.all() == []
        await asyncio.sleep(1.5)
        assert len(await school.store.all()) == 1
        school.store.error = RouterError("disk")
        school.learn()
        await asyncio.sleep(1.5)
        assert len(school.lessons.learned.by_weights[SMALL.weights]) == 2

    virtual(story)


def test_the_next_router_knows_what_the_last_one_has_learned(virtual):
    """In the order in which it was learned."""

    async def story():
        first = School()
        for taken in (4 * GIB, 5 * GIB):
            first.learn(taken=taken)
        await asyncio.sleep(0)
        second = School(first.store)
        assert second.lessons.learned.by_weights == {}
        await second.lessons.recall()
        assert second.lessons.learned.by_weights == first.lessons.learned.by_weights
        second.learn()
        assert len(second.lessons.learned.by_weights[SMALL.weights]) == 3

    virtual(story)


def test_of_any_number_of_loads_only_the_newest_are_remembered(virtual):
    """A router that runs for a year has seen a million."""

    async def story():
        first = School()
        first.learn()
        await asyncio.sleep(0)
        (one,) = await first.store.all()
        many = MemoryStore(max_rows=MOST_OBSERVATIONS + 10)
        for at in range(MOST_OBSERVATIONS + 10):
            await many.put(replace(one, weights=f"sha256:{at}"))
        second = School(many)
        await second.lessons.recall()
        second.learn()
        assert len(second.lessons.learned.by_weights) == MOST_OBSERVATIONS
        assert SMALL.weights in second.lessons.learned.by_weights
        assert await second.lessons.forget(None) == MOST_OBSERVATIONS

    virtual(story)


def test_what_loads_show_of_the_server_is_said_once(virtual):
    """And again when it is over."""

    async def story():
        heard, clock = Heard(), itertools.count(UNIX_S)
        lessons = Lessons(MemoryStore(), lambda: SETTINGS, Telemetry([heard]), lambda: next(clock))
        four = replace(SETTINGS, num_parallel=4)
        plan = replace(PLAN, options=LoadOptions(num_ctx=131072, num_batch=512, main_gpu=1))

        def load(facts, settings):
            assumed = lessons.learned.applied_to(SETTINGS)
            need, really = (
                footprint(facts, memory_options(facts, plan.options, one)).need_bytes for one in (assumed, settings)
            )
            planned = replace(plan, expected_bytes=need)
            lessons.learn(facts, planned, row_of(facts), CARDS, taken_bytes=really, is_spilled=False)
            return [(event.level, event.message) for event in heard.of(Notified)]

        assert load(SMALL, SETTINGS) == []
        for facts in (BIG, MIDDLE):
            ((level, text),) = load(facts, four)
            assert level == "warning"
            assert "OLLAMA_NUM_PARALLEL=4" in text
        assert lessons.learned.applied_to(SETTINGS) == four
        assert load(EMBEDDER, four) == load(EMBEDDER, four)
        load(BIG, SETTINGS)
        assert load(MIDDLE, SETTINGS)[1:] == [("info", "loads show the server as it is configured again")]
        await lessons.forget(None)
        assert len(heard.of(Notified)) == 2

    virtual(story)


def test_what_was_observed_by_a_clock_that_was_ahead_counts_from_this_start_on_j10(virtual):
    """And not for years; the store keeps it as it was."""

    async def story():
        store = MemoryStore()
        before = School(store)
        ahead = replace(before.learn(spilled=True), at_s=UNIX_S + 1e9)
        await store.put(ahead)
        school = School(store)
        await school.lessons.recall()
        ((seen,),) = school.lessons.learned.by_weights.values()
        assert (seen.at_s, (await store.all())[-1].at_s) == (UNIX_S, UNIX_S + 1e9)

    virtual(story)
