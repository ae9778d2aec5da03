"""The bound on waits is never above what a rule reaches, and exact where the best order is plain."""

from __future__ import annotations

import math
import random
from itertools import permutations

import pytest

from ollama_simulator.machine.spec import CardSpec
from router.planning.baselines import BATCH, FIFO, Ticket, tickets
from router.planning.bound import Task, best_found, block_wait_s, blocks_wait_s, cliques, least_mean_wait_s, srpt_wait_s
from router.planning.costs import run
from router.planning.traffic import SPEEDS, Job

ONE = (CardSpec(),)
LARGE, OTHER, SMALL, TINY = "qwen3:32b", "gemma3:27b", "qwen3:4b", "llama3.2:1b"
LOADS = {LARGE: 6.0, OTHER: 5.0}


def wanted(seed: int, count: int = 40, span_s: float = 120) -> list[Ticket]:
    rng = random.Random(seed)
    models = (LARGE, OTHER, SMALL, TINY)
    jobs = [
        Job(rng.uniform(0, span_s), rng.choice(models), rng.randint(50, 900), rng.randint(5, 200)) for _ in range(count)
    ]
    return tickets(sorted(jobs, key=lambda job: job.at_s), {model: (model,) for model in models}, ONE)


@pytest.mark.parametrize("seed", range(8))
def test_no_rule_waits_less_than_the_bound(seed: int) -> None:
    """Neither plain rules nor the best of all clairvoyant ones; and that one is no worse than the plain ones."""
    asked = wanted(seed)
    bound_s, best = least_mean_wait_s(asked, ONE, SPEEDS), best_found(asked, ONE, SPEEDS)[1]
    plain = [run(asked, ONE, SPEEDS, rule) for rule in (FIFO, BATCH)]
    assert 0 < bound_s <= best.mean_s <= min(one.mean_s for one in plain) + 1e-9


def test_two_requests_for_two_large_models_cost_one_load_at_least() -> None:
    """The shorter first, or the first one first; the other waits for it and for its load."""
    together = [Task(0, LARGE, 4), Task(0, OTHER, 1)]
    assert block_wait_s(together, LOADS) == min(4 + 5, 1 + 6)
    assert block_wait_s([Task(0, LARGE, 4), Task(3, OTHER, 1)], LOADS) == 4 + 5 - 3
    assert block_wait_s([Task(0, LARGE, 4), Task(60, OTHER, 1)], LOADS) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_block_is_served_in_the_best_of_all_orders(seed: int) -> None:
    """Compared with every order, one by one."""
    rng = random.Random(seed)
    tasks = [Task(rng.uniform(0, 20), rng.choice((LARGE, OTHER)), rng.uniform(1, 8)) for _ in range(6)]

    def waited_s(order: tuple[Task, ...]) -> float:
        free_s, tag, total_s = -math.inf, order[0].tag, 0.0
        for task in order:
            start_s = max(task.at_s, free_s + (LOADS[task.tag] if task.tag != tag else 0))
            free_s, tag, total_s = start_s + task.service_s, task.tag, total_s + start_s - task.at_s
        return total_s

    assert block_wait_s(tasks, LOADS) == pytest.approx(min(map(waited_s, permutations(tasks))))


def test_without_loads_the_shortest_work_left_goes_first() -> None:
    """A long request is interrupted by a short one: it ends one second later, the short one does not wait."""
    assert srpt_wait_s([Task(0, LARGE, 10), Task(2, LARGE, 1)]) == pytest.approx(1)
    assert srpt_wait_s([Task(0, LARGE, 2), Task(0, LARGE, 1), Task(0, LARGE, 3)]) == pytest.approx(0 + 1 + 3)
    assert srpt_wait_s([]) == 0
    assert blocks_wait_s([], LOADS) == 0
    assert least_mean_wait_s([], ONE, SPEEDS) == 0


def test_a_clique_holds_only_models_that_never_fit_together() -> None:
    """Two large models exclude each other; small ones disturb nobody."""
    found = cliques(wanted(1), ONE)
    assert sorted(tag for clique in found for tag in clique) == sorted((LARGE, OTHER, SMALL, TINY))
    assert frozenset((LARGE, OTHER)) in found
    assert all(len(clique) == 1 for clique in cliques(wanted(1), (CardSpec(), CardSpec(name="CUDA1"))))
