"""Open WebUI's pattern: the requests that it sends, and when a conversation flips between models."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import Machine
from ollama_simulator.server import SimConfig
from router.planning.measure import Served, body_of
from router.planning.open_webui import CHAINS, CHAT, CHORE, INSTALLED, TURNS, Turn, chat_figures, converse
from router.planning.stage import Reply, stage
from router.planning.traffic import SPEEDS, Job

JOB = Job(0, CHAT, 100, 50)


def turn(conversation: int, answered_by: str, job: Job = JOB) -> Turn:
    return Turn(conversation, job, Reply(job.model, answered_by, 200, 4.0, 1.0, 30.0))


def test_a_flip_is_a_change_of_model_within_one_conversation() -> None:
    """Another conversation's model and the chores' do not count."""
    turns = [
        turn(1, CHAT),
        turn(1, CHORE, replace(JOB, model=CHORE)),
        turn(2, "qwen3:14b"),
        turn(1, "qwen3:8b"),
        turn(2, "qwen3:14b"),
        turn(1, CHAT),
    ]
    served = [Served(each.job, CHAINS[each.job.model], each.reply, best=each.job.model) for each in turns]
    found = chat_figures(turns, served)
    assert (found.turns, found.below_best, found.flips, found.mean_turn_s) == (5, 3, 2, 4.0)


@pytest.mark.slow
def test_every_answer_is_followed_by_the_chores_of_the_small_model() -> None:
    """Three after the first answer, one after each further, one after another."""

    async def go() -> list[Turn]:
        config = SimConfig(machine=Machine(speeds=SPEEDS), models=INSTALLED)
        async with stage(config, None) as one:

            async def send(job: Job) -> Reply:
                return await one.ask(body_of(job))

            return await converse(1, 1, send)

    turns = run_virtual(go())
    assert [each.job.model for each in turns] == [CHAT, *[CHORE] * 3, *[CHAT, CHORE] * (TURNS - 1)]
    for earlier, later in pairwise(turns):
        assert later.reply.asked_s >= earlier.reply.asked_s + earlier.reply.took_s - 1e-6
