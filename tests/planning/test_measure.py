"""The figures of the benches mean what they say: hand-made traces with known results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.core.units import GIB
from router.planning.measure import Figures, Foreign, Served, body_of, figures, judged, path_of, play
from router.planning.stage import Reply, Stage, stage
from router.planning.traffic import EMBEDDER, SPEEDS, Job

CHAIN = ("qwen3:32b", "qwen3:14b", "qwen3:8b", "qwen3:4b")
LARGE, MIDDLE, SMALL = Job(0, "qwen3:32b", 10, 8), Job(0, "qwen3:14b", 10, 8), Job(0, "qwen3:4b", 10, 8)


def served(answered_by: str, *, best: str, status: int = 200) -> Served:
    return Served(LARGE, CHAIN, Reply("qwen3:32b", answered_by, status, 1.0, 1.0, 30.0), best)


@pytest.mark.parametrize(
    ("answered_by", "best", "is_below"),
    [
        ("qwen3:32b", "qwen3:32b", False),
        ("qwen3:14b", "qwen3:32b", True),
        ("qwen3:14b", "qwen3:14b", False),
        ("qwen3:32b", "qwen3:14b", False),  # larger than was thought to fit
        ("gemma3:27b", "qwen3:32b", True),  # outside the chain
        ("qwen3:14b", "", False),  # nothing fitted
    ],
)
def test_an_answer_is_below_best_if_an_earlier_variant_of_its_chain_fitted(
    answered_by: str, best: str, is_below: bool
) -> None:
    """By the order of the chain, not by bytes."""
    assert served(answered_by, best=best).is_below_best is is_below


def test_a_refusal_is_not_below_best() -> None:
    """It is counted as failed."""
    assert not served("", best="qwen3:32b", status=503).is_below_best


def story(steps: Sequence[tuple[str, Job, int]], speeds: Speeds = SPEEDS) -> tuple[Figures, list[Served]]:
    """Send requests one after another to an Ollama alone, each to a model that the test names.

    A step is the model that answers, the request as its client meant it, and the GiB that other programs hold.
    """

    async def run() -> tuple[Figures, list[Served]]:
        config = SimConfig(machine=Machine(cards=(CardSpec(),), speeds=speeds), models=CHAIN)
        async with stage(config, None) as one:
            foreign, pairs = Foreign(one), []
            for model, job, foreign_gib in steps:
                foreign.take(0, foreign_gib * GIB)
                sent = replace(job, model=model, num_ctx=8192)
                pairs.append((job, await one.ask(body_of(sent), path_of(sent))))
                await asyncio.sleep(1)
            found = judged(one, pairs, {job.model: CHAIN[CHAIN.index(job.model) :] for job, _ in pairs}, foreign)
            return figures(one, found), found

    return run_virtual(run())


def test_only_avoidable_small_answers_are_below_best() -> None:
    """A 14B in place of a 32B: avoidable on the free card, not beside 6 GiB of others, avoidable as a 4B there."""
    found, each = story(
        [
            ("qwen3:14b", LARGE, 0),
            ("qwen3:14b", LARGE, 6),
            ("qwen3:4b", LARGE, 6),
            ("qwen3:14b", MIDDLE, 0),
            ("qwen3:4b", SMALL, 0),
        ]
    )
    assert [one.is_below_best for one in each] == [True, False, True, False, False]
    assert found.below_best == 2


def test_memory_that_others_hold_only_for_a_part_of_the_wait_excuses_a_smaller_variant() -> None:
    """The best variant must have fitted all the time from the request to the begin of service."""

    async def run() -> list[tuple[int, ...]]:
        async with stage(SimConfig(models=CHAIN), None) as one:
            foreign = Foreign(one)
            await asyncio.sleep(10)
            foreign.take(0, 5 * GIB)
            await asyncio.sleep(10)
            foreign.take(0, 0)
            return [foreign.most_bytes(*span) for span in ((0, 5), (5, 15), (12, 18), (15, 25), (20.5, 25))]

    assert run_virtual(run()) == [(0,), (5 * GIB,), (5 * GIB,), (5 * GIB,), (0,)]


def test_a_spilled_load_and_its_answers_are_counted() -> None:
    """A 32B beside 6 GiB of others: one load, two answers, both slow."""
    found, each = story([("qwen3:32b", LARGE, 6), ("qwen3:32b", LARGE, 6), ("qwen3:4b", LARGE, 0)])
    assert (found.loads, found.spilled_loads, found.spilled_answers) == (2, 1, 2)
    assert each[0].reply.tokens_per_s < 0.5 * each[2].reply.tokens_per_s


def test_a_load_that_nobody_uses_is_counted_as_unused() -> None:
    """A load-only request and an unload: thrown away. A model that is still there is not."""

    async def run() -> Figures:
        async with stage(SimConfig(models=CHAIN), None) as one:
            await one.ask({"model": "qwen3:8b"})
            await one.ask({"model": "qwen3:8b", "keep_alive": 0})
            await asyncio.sleep(2)
            reply = await one.ask(body_of(SMALL))
            await one.ask({"model": "qwen3:14b"})
            return figures(one, judged(one, [(SMALL, reply)], {}, Foreign(one)))

    found = run_virtual(run())
    assert (found.loads, found.unused_loads, found.requests) == (3, 1, 1)


async def twice(one: Stage, job: Job) -> list[Reply]:
    async def send(job: Job) -> Reply:
        return await one.ask(body_of(job), path_of(job))

    return await play([job, replace(job, at_s=0.001)], send)


def test_a_wait_ends_with_the_begin_of_service() -> None:
    """The first waits for its load, the second also for the first's answer: 50 tokens at 50 per second."""

    async def run() -> list[Reply]:
        speeds = Speeds(load_mib_per_s=1e6, tokens_per_s=50)
        async with stage(SimConfig(machine=Machine(speeds=speeds), models=CHAIN), None) as one:
            await one.ask(body_of(SMALL))
            return await twice(one, replace(SMALL, answer_tokens=50))

    first, second = run_virtual(run())
    assert first.wait_s == pytest.approx(0, abs=0.01)
    assert second.wait_s == pytest.approx(1, abs=0.02)
    assert second.service_s == pytest.approx(1, abs=0.02)
    assert second.began_s == pytest.approx(first.asked_s + first.took_s, abs=0.02)


def test_an_embedding_waits_for_its_load_only() -> None:
    """Its answer has no duration of the work alone, so it is what is left of the total."""

    async def run() -> list[Reply]:
        async with stage(SimConfig(machine=Machine(speeds=SPEEDS), models=(EMBEDDER,)), None) as one:
            return await twice(one, Job(0, EMBEDDER, 400, 0, embeds=True))

    for reply in run_virtual(run()):
        assert reply.status == 200
        assert 0.2 < reply.wait_s < 1.5
        assert 0.01 < reply.service_s < 0.1
