"""Whoever waits is served: the bound that the rules of the line promise, on random workloads."""

import random

import pytest

from router.core.decision.groups import OTHERS_SHARE, Patience
from router.core.decision.turns import LOOK_AGAIN_S
from tests.core.decision.line_machine import LineMachine, Model
from tests.core.facts import facts_of

REQUESTS, LONGEST_ANSWER_S, AGE_BOUND_S, FACTOR = 500, 40.0, 10.0, 3.0
PATIENCE = Patience(AGE_BOUND_S, FACTOR)


def models_of(rng):
    sizes = [rng.choice((2, 5, 9, 14, 20)) for _ in range(rng.randrange(2, 7))]
    return [Model(facts_of(f"m{n}:{size}b", size), size, size * rng.uniform(0.1, 1.0)) for n, size in enumerate(sizes)]


def requests_of(rng, models, count=REQUESTS):
    """Arrivals that a card can or cannot keep up with, in bursts or one by one; a favourite may have most of them."""
    weights = [rng.choice((1, 1, 3, 30)) for _ in models]
    at_s, pause_s = 0.0, rng.choice((0.05, 1.0, 5.0))
    for _ in range(count):
        at_s += rng.expovariate(1 / pause_s) if rng.random() < 0.8 else 0.0
        yield at_s, rng.choices(models, weights)[0], min(LONGEST_ANSWER_S, rng.expovariate(1 / 3))


def patience_s(models):
    """Return twice the longest time after which a group turns impatient: so long others may load beside it."""
    cost_s = 2 * max(model.load_s for model in models) + sum(model.load_s for model in models)
    others_s = (len(models) - 1) * cost_s
    return 2 * max(AGE_BOUND_S, FACTOR * (cost_s + OTHERS_SHARE * others_s))


def bound_s(models):
    """Return the longest wait: twice the longest bound, and an answer and a switch for each model that may go first."""
    switch_s = max(model.load_s for model in models)
    return patience_s(models) + (len(models) + 1) * (LONGEST_ANSWER_S + switch_s + LOOK_AGAIN_S)


def work_s(served, at_s, until_s):
    """Return the seconds of all answers that were wanted before `until_s` and not finished at `at_s`."""
    return sum(answer_s for came_s, wait_s, answer_s in served
               if came_s <= until_s and came_s + wait_s + answer_s > at_s)  # fmt: skip


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed > 2 else []) for seed in range(20)]
)
def test_whoever_waits_is_served_within_the_bound(seed):
    """Ten thousand requests in all; none is left over, and none is served before what it waited for was loaded."""
    rng = random.Random(seed)
    models = models_of(rng)
    waits = LineMachine(PATIENCE, card_gib=24).run(requests_of(rng, models))
    assert len(waits) == REQUESTS
    assert max(wait_s for _, wait_s in waits) <= bound_s(models)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed > 2 else []) for seed in range(40)]
)
def test_with_few_slots_whoever_waits_is_served_within_the_bound_and_the_work_in_front(seed):
    """Of that counts what others wanted before the residents in its way were closed, and nothing that came later."""
    rng = random.Random(seed)
    models, slots = models_of(rng), rng.choice((1, 2, 4))
    machine = LineMachine(PATIENCE, card_gib=24, slots=slots)
    assert len(machine.run(requests_of(rng, models, 150))) == 150
    for came_s, wait_s, _ in machine.served:
        assert wait_s <= bound_s(models) + work_s(machine.served, came_s, came_s + patience_s(models))


@pytest.mark.parametrize("seed", range(3))
def test_less_than_a_third_of_the_time_goes_into_switches_while_work_is_left(seed):
    """Two models that never fit together, and work for both: the age bound pays for the switch."""
    rng = random.Random(seed)
    models = [Model(facts_of(f"m{n}:20b", 20), 20, 6.0) for n in range(2)]
    requests = [(index * 0.2, rng.choice(models), rng.uniform(1, 3)) for index in range(REQUESTS)]
    machine = LineMachine(PATIENCE, card_gib=24)
    machine.run(requests)
    assert machine.loads * 6.0 <= machine.now_s / FACTOR
