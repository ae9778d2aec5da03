"""What loads and unloads take, as measured."""

import asyncio

import pytest

from router.backend.load_times import MOST_MODELS, LoadTimes
from router.core.units import GIB
from tests.backend.machine import BIG, MIDDLE, SMALL, MemoryMachine, weights_of
from tests.backend.scene import play
from tests.core.facts import facts_of, resident_of

BIG_S, OTHER = 20.0, facts_of("other:8b", 8)


def test_before_anything_was_measured_a_gib_takes_a_second():
    """And an unload another one."""
    costs = LoadTimes().costs
    assert costs.load_s("x", 8 * GIB) == 8.0
    assert costs.switch_s(OTHER, []) == pytest.approx(OTHER.size_bytes / GIB)


def test_a_measured_load_counts_for_its_own_weights_and_its_speed_for_all_others():
    """The newest weighs half: a model may have left the page cache, or come into it."""
    times = LoadTimes()
    times.loaded("a", 10 * GIB, 5.0)
    assert (times.costs.load_s("a", 10 * GIB), times.costs.load_s("b", 6 * GIB)) == (5.0, 3.0)
    times.loaded("a", 10 * GIB, 10.0)
    assert (times.costs.load_s("a", 10 * GIB), times.costs.load_s("b", 6 * GIB)) == (7.5, 4.0)


def test_a_switch_costs_the_unloads_and_the_reload_of_what_is_in_use():
    """What nobody has used lately is not counted: it may never come back."""
    times = LoadTimes()
    times.loaded(OTHER.weights, OTHER.size_bytes, 4.0)
    times.loaded(BIG.weights, BIG.size_bytes, BIG_S)
    times.unloaded(0.5)
    idle = resident_of(BIG)
    assert times.costs.switch_s(OTHER, [idle]) == 4.5
    for busy in ({"in_flight": 1}, {"wanted": 1}, {"is_hot": True}):
        assert times.costs.switch_s(OTHER, [resident_of(BIG, **busy)]) == 4.5 + BIG_S


def test_the_times_of_a_bounded_number_of_models_are_kept():
    """Those that were loaded last."""
    times = LoadTimes()
    for number in range(MOST_MODELS + 1):
        times.loaded(f"m{number}", GIB, 9.0)
    assert len(times.costs.measured_s) == MOST_MODELS
    assert "m0" not in times.costs.measured_s


def test_a_load_that_took_no_time_divides_by_nothing():
    """A clock may stand still between two readings."""
    times = LoadTimes()
    times.loaded("a", GIB, 0.0)
    times.unloaded(0.0)
    assert times.costs.load_s("b", GIB) > 0


def test_how_long_after_a_load_nothing_was_unloaded_falls_at_once_and_rises_slowly():
    """A stall is not noticed for so long, so too little is safe. Only the first unload after each load counts."""
    times, seen = LoadTimes(), []
    for order, stayed_s in ((1, 4.0), (1, 0.5), (2, 6.0), (3, 2.0)):
        times.unloading("a", order, stayed_s)
        seen.append(times.costs.until_unload_s("a", 3 * GIB) - 3)
    assert seen == [4, 4, 5, 2]
    assert times.costs.until_unload_s("b", 3 * GIB) == 3
    for number in range(MOST_MODELS):
        times.unloading(f"m{number}", 4 + number, 1.0)
    assert times.costs.until_unload_s("a", 3 * GIB) == 3


def test_a_stay_is_measured_from_the_last_load_to_the_next_unload():
    async def story(scene):
        await scene.make_resident(BIG)
        await asyncio.sleep(7)
        await scene.make_resident(MIDDLE)
        stays_s = scene.backend.residency.load_times.costs.stays_s
        assert stays_s == {weights_of(BIG): pytest.approx(7, abs=0.1)}

    play(story, MemoryMachine(BIG, MIDDLE, SMALL))


def test_switches_are_measured():
    """The load, and the unload before it."""
    machine = MemoryMachine(BIG, MIDDLE, SMALL)
    machine.load_s = 7.0

    async def story(scene):
        await scene.make_resident(BIG)
        await scene.make_resident(MIDDLE)
        costs = scene.backend.residency.load_times.costs
        assert costs.measured_s[weights_of(BIG)] == pytest.approx(7.0, abs=0.1)
        assert costs.measured_s[weights_of(MIDDLE)] == pytest.approx(7.0, abs=0.1)
        assert scene.backend.rules().costs is costs

    play(story, machine)


def test_until_a_load_was_measured_the_mean_speed_of_other_backends_counts():
    """A measurement of its own counts alone."""
    first, second, third = all_times = [LoadTimes() for _ in range(3)]
    for times in all_times:
        times.learn_from(other for other in all_times if other is not times)
    first.loaded("a", 8 * GIB, 2.0)
    assert third.costs.load_s("b", 6 * GIB) == 1.5
    second.loaded("a", 8 * GIB, 4.0)
    assert (second.costs.load_s("b", 6 * GIB), third.costs.load_s("b", 6 * GIB)) == (3.0, 2.0)
    assert first.costs.load_s("b", 6 * GIB) == 1.5
