"""How short waits can be at all: a proven lower bound for given traffic, and the best schedule that a search finds.

`least_mean_wait_s` is a bound: no rule, clairvoyant or not, has a shorter mean wait if it serves every request by the
best variant, one at a time per runner, at the speeds of the machine. It is not reached, because it leaves out most of
what makes a schedule hard:

1. Requests for models that fit beside each other do not disturb each other at all.
2. Of a clique (models of which no two fit the machine together) at most one is loaded at a time. Its requests are cut
   into short blocks. Each block is served in the best order by itself, as if no other request existed, with its first
   model loaded in advance. A change of model within the block costs the reading of its weights; unloads, starts of
   processes and Ollama's polls cost nothing. Requests left out of a schedule delay none of the rest, so the waits of
   the blocks add up to a bound.
3. The clique as one machine without loads, on which the request with the least work left is served first and may be
   interrupted (SRPT, the optimum of that problem). The greater of 2 and 3 counts.

`best_found` is the other side: the best of many clairvoyant rules on the cost model (they know the requests of the next
seconds, and keep or load models for them). It can be done, so the optimum lies between the two.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ollama_simulator.machine.spec import CardSpec, Speeds
from router.core.units import MIB
from router.planning.baselines import Foresight, Rule, Ticket
from router.planning.costs import Run, load_s, run, service_s
from router.planning.fitting import least_held_bytes

BLOCK = 9
"""Requests in a block: all orders of them are tried."""


@dataclass(frozen=True, slots=True)
class Task:
    """A request as the bound sees it: when it comes, its model, and how long it is served."""

    at_s: float
    tag: str
    service_s: float


def least_mean_wait_s(wanted: Sequence[Ticket], cards: tuple[CardSpec, ...], speeds: Speeds) -> float:
    """Return a mean wait that no rule can beat, in seconds."""
    if not wanted:
        return 0.0
    tasks = [
        Task(ticket.job.at_s, ticket.tag, service_s(ticket.job, ticket.tag, speeds))
        for ticket in wanted
        if not ticket.job.embeds  # a runner serves many at once
    ]
    loads = {task.tag: load_s(task.tag, speeds) for task in tasks}
    total_s = 0.0
    for clique in cliques(wanted, cards):
        mine = [task for task in tasks if task.tag in clique]
        total_s += max(srpt_wait_s(mine), blocks_wait_s(mine, loads))
    return total_s / len(wanted)


def cliques(wanted: Sequence[Ticket], cards: tuple[CardSpec, ...]) -> list[frozenset[str]]:
    """Return disjoint sets of models of which no two can be loaded together, those with most requests first."""
    least: dict[str, int] = {}
    counts: dict[str, int] = {}
    context = min(card.context_mib for card in cards) * MIB
    for ticket in wanted:
        held = least_held_bytes(ticket.tag, ticket.num_ctx, context)
        least[ticket.tag] = min(held, least.get(ticket.tag, held))
        counts[ticket.tag] = counts.get(ticket.tag, 0) + 1
    have = sum((card.total_mib - card.reserved_mib) * MIB for card in cards)
    left, found = sorted(counts, key=lambda tag: -counts[tag]), []
    while left:
        clique: list[str] = []
        for tag in left:
            if all(least[tag] + least[other] > have for other in clique):
                clique.append(tag)
        found.append(frozenset(clique))
        left = [tag for tag in left if tag not in clique]
    return found


def srpt_wait_s(tasks: Sequence[Task]) -> float:
    """Return the sum of waits on one machine that may interrupt: the least work left first."""
    arrivals = sorted(tasks, key=lambda task: task.at_s)
    left: list[float] = []
    now_s, ends_s, at = 0.0, 0.0, 0
    while at < len(arrivals) or left:
        if not left:
            now_s = max(now_s, arrivals[at].at_s)
        while at < len(arrivals) and arrivals[at].at_s <= now_s:
            heapq.heappush(left, arrivals[at].service_s)
            at += 1
        work_s = heapq.heappop(left)
        until_s = min(now_s + work_s, arrivals[at].at_s if at < len(arrivals) else math.inf)
        if until_s - now_s < work_s - 1e-9:
            heapq.heappush(left, work_s - (until_s - now_s))
        else:
            ends_s += until_s
        now_s = until_s
    return max(0.0, ends_s - sum(task.at_s + task.service_s for task in tasks))


def blocks_wait_s(tasks: Sequence[Task], loads: dict[str, float]) -> float:
    """Return the sum of the least waits of blocks of consecutive requests; the best of some ways to cut them."""
    ordered = sorted(tasks, key=lambda task: task.at_s)
    cuts = (0, BLOCK // 2)
    return max((sum(block_wait_s(block, loads) for block in _blocks(ordered, cut)) for cut in cuts), default=0.0)


def _blocks(tasks: Sequence[Task], cut: int) -> Iterator[Sequence[Task]]:
    if cut:
        yield tasks[:cut]
    for at in range(cut, len(tasks), BLOCK):
        yield tasks[at : at + BLOCK]


def block_wait_s(tasks: Sequence[Task], loads: dict[str, float]) -> float:
    """Return the least sum of waits of a few requests of one clique, over all their orders."""
    best_s = math.inf

    def extend(left: tuple[Task, ...], free_s: float, tag: str, waited_s: float) -> None:
        nonlocal best_s
        if waited_s >= best_s:
            return
        if not left:
            best_s = waited_s
            return
        for index, task in enumerate(left):
            # A load may go on while nobody waits, so the model can be ready when the request comes.
            ready_s = free_s + (loads[task.tag] if tag and tag != task.tag else 0.0)
            start_s = max(task.at_s, ready_s)
            rest = left[:index] + left[index + 1 :]
            extend(rest, start_s + task.service_s, task.tag, waited_s + start_s - task.at_s)

    extend(tuple(tasks), -math.inf, "", 0.0)
    return 0.0 if best_s == math.inf else best_s


def best_found(wanted: Sequence[Ticket], cards: tuple[CardSpec, ...], speeds: Speeds) -> tuple[Rule, Run]:
    """Return the clairvoyant rule with the shortest mean wait on the cost model, and its run."""
    tried = ((rule, run(wanted, cards, speeds, rule)) for rule in _rules())
    return min(tried, key=lambda pair: pair[1].mean_s)


def _rules() -> Iterator[Rule]:
    orders = ("most", "oldest", "density")
    for age_s, order, linger_s, ahead_s in product((10.0, 30.0, 60.0, math.inf), orders, (0.0, 2.0, 6.0), (0.0, 5.0)):
        yield Rule(age_s, order, Foresight(linger_s, ahead_s))
