"""The plain rules: who is served next, on the cost model and on the simulated Ollama."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.planning.baselines import BATCH, FIFO, Foresight, Rule, Ticket, tickets
from router.planning.costs import Run, run, service_s
from router.planning.direct import Direct
from router.planning.measure import play
from router.planning.stage import Reply, stage
from router.planning.traffic import SPEEDS, Job

ONE = (CardSpec(),)
LARGE, OTHER, SMALL = "qwen3:32b", "gemma3:27b", "qwen3:4b"
CHAINS = {LARGE: (LARGE, SMALL), OTHER: (OTHER,), SMALL: (SMALL,)}


def wanted(*asked: tuple[float, str], answer: int = 50) -> list[Ticket]:
    return tickets([Job(at_s, model, 100, answer) for at_s, model in asked], CHAINS, ONE)


def alternating(count: int, gap_s: float) -> list[Ticket]:
    return wanted(*((gap_s * number, (LARGE, OTHER)[number % 2]) for number in range(count)))


def test_a_request_is_served_by_the_first_variant_that_fits() -> None:
    """The asked one where it fits; else the next of the chain."""
    assert [ticket.tag for ticket in wanted((0, LARGE), (1, OTHER))] == [LARGE, OTHER]
    (beside,) = tickets([Job(0, LARGE, 100, 50, num_ctx=32768)], CHAINS, ONE)
    assert beside.tag == SMALL
    with pytest.raises(ValueError, match="no variant"):
        tickets([Job(0, LARGE, 100, 50)], CHAINS, (CardSpec(total_mib=2000),))


def test_models_that_fit_beside_each_other_are_loaded_once() -> None:
    """Two small models: two loads, whoever asks when."""
    chains = {"llama3.2:1b": ("llama3.2:1b",), SMALL: (SMALL,)}
    jobs = [Job(number, ("llama3.2:1b", SMALL)[number % 2], 100, 20) for number in range(20)]
    for rule in (FIFO, BATCH):
        assert run(tickets(jobs, chains, ONE), ONE, SPEEDS, rule).loads == 2


def test_batches_need_fewer_loads_than_first_come_first_served() -> None:
    """Forty requests that alternate between two models, three a second."""
    first_come, batches = (run(alternating(40, 0.3), ONE, SPEEDS, rule) for rule in (FIFO, BATCH))
    assert batches.loads < first_come.loads
    assert batches.mean_s < first_come.mean_s


def test_a_batch_ends_when_another_request_has_waited_for_the_age_bound() -> None:
    """One model is asked for without end; the other one's request is served soon after the bound."""
    asked = sorted([*((1.5 * number, LARGE) for number in range(120)), (10.0, OTHER)])
    for bound_s in (30.0, 60.0):
        found = run(wanted(*asked), ONE, SPEEDS, Rule(age_bound_s=bound_s))
        assert bound_s < found.waits_s[asked.index((10.0, OTHER))] < bound_s + 20


def test_foresight_loads_ahead_and_keeps_what_is_wanted_soon() -> None:
    """Known in advance, a model is ready when its request comes, and stays if another one follows at once."""
    ahead = run(wanted((0, LARGE), (60, OTHER)), ONE, SPEEDS, Rule(foresight=Foresight(ahead_s=10)))
    assert ahead.waits_s[1] == 0
    asked = wanted((0, LARGE), (7, OTHER), (10, LARGE), (13, LARGE))
    assert run(asked, ONE, SPEEDS, BATCH).loads == 3
    assert run(asked, ONE, SPEEDS, Rule(foresight=Foresight(linger_s=8))).loads == 2


def on_simulator(asked: Sequence[Ticket], rule: Rule) -> Run:
    async def go() -> Run:
        config = SimConfig(machine=Machine(cards=ONE, speeds=SPEEDS), models=(LARGE, OTHER, SMALL))
        async with stage(config, None) as one:
            direct, by_job = Direct(one, rule), {id(ticket.job): ticket for ticket in asked}
            replies = await play([ticket.job for ticket in asked], lambda job: direct.send(by_job[id(job)]))
            assert {reply.status for reply in replies} == {200}
            assert not any(load.is_spilled for load in one.loaded)
            assert one.evictions == []
            await asyncio.sleep(1)
            return Run(tuple(reply.wait_s for reply in replies), len(one.loads))

    return run_virtual(go())


@pytest.mark.slow
@pytest.mark.parametrize("rule", [FIFO, BATCH])
def test_the_cost_model_agrees_with_the_simulated_ollama(rule: Rule) -> None:
    """Two large models in turn: within 5 % of the mean wait, and the same loads within 5 %."""
    rng = random.Random(1)
    asked = sorted((rng.uniform(0, 100), rng.choice((LARGE, OTHER))) for _ in range(30))
    model, real = run(wanted(*asked), ONE, SPEEDS, rule), on_simulator(wanted(*asked), rule)
    assert model.loads == pytest.approx(real.loads, rel=0.05, abs=1)
    assert model.mean_s == pytest.approx(real.mean_s, rel=0.05, abs=0.3)


@pytest.mark.slow
def test_the_cost_model_is_too_fast_where_models_share_a_card() -> None:
    """It leaves out the stalls after an unload beside a model that stays: by at most a third here, and never slower."""
    rng = random.Random(2)
    asked = sorted((rng.uniform(0, 100), rng.choice((LARGE, OTHER, SMALL))) for _ in range(30))
    model, real = run(wanted(*asked), ONE, SPEEDS, BATCH), on_simulator(wanted(*asked), BATCH)
    assert 0.65 * real.mean_s < model.mean_s < 1.05 * real.mean_s


def test_an_answer_takes_in_the_cost_model_what_it_takes_in_the_simulator() -> None:
    """A prompt and 200 tokens of a 32B."""

    async def go() -> Reply:
        config = SimConfig(machine=Machine(cards=ONE, speeds=SPEEDS), models=(LARGE,))
        async with stage(config, None) as one:
            (ticket,) = wanted((0, LARGE), answer=200)
            return await Direct(one, BATCH).send(ticket)

    assert run_virtual(go()).service_s == pytest.approx(service_s(Job(0, LARGE, 100, 200), LARGE, SPEEDS), rel=0.05)
