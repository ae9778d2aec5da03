"""Open WebUI's own pattern, without any chain configured: a large model for the chat, a small one for its chores.

After each answer Open WebUI asks its task model for follow-up questions, and after the first one also for a title and
for tags, one after another, while the person reads. Each request here waits for the last one, as it does there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from router.core.ollama.names import key_of
from router.planning.measure import Send, Served
from router.planning.stage import Reply
from router.planning.traffic import Job

CHAT, CHORE = "qwen3:32b", "qwen3:4b"
INSTALLED = ("qwen3:32b", "qwen3:14b", "qwen3:8b-q8_0", "qwen3:8b", "qwen3:4b")
TURNS = 8

CHAINS = {CHAT: INSTALLED, CHORE: (CHORE,)}
"""The automatic chains of these models: they are not configured, only counted by."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation."""

    conversation: int
    job: Job
    reply: Reply


@dataclass(frozen=True, slots=True)
class ChatFigures:
    """The turns of the chat alone. `flips`: turns answered by another model than the turn ahead of them."""

    turns: int
    below_best: int
    flips: int
    mean_turn_s: float


async def converse(seed: int, conversations: int, send: Send) -> list[Turn]:
    """Hold some conversations at the same time, by as many people, and return every request with its answer."""
    found = await asyncio.gather(*(_conversation(seed, number, send) for number in range(conversations)))
    return sorted((turn for turns in found for turn in turns), key=lambda turn: turn.reply.asked_s)


async def _conversation(seed: int, number: int, send: Send) -> list[Turn]:
    rng = random.Random(f"open webui {seed} {number}")
    await asyncio.sleep(rng.uniform(0, 20))
    turns: list[Turn] = []
    prompt = rng.randint(50, 400)
    for index in range(TURNS):
        job = _job(CHAT, prompt, rng.randint(80, 320))
        turns.append(Turn(number, job, await send(job)))
        prompt += job.answer_tokens
        reading = asyncio.create_task(asyncio.sleep(rng.uniform(8, 40)))
        for _ in range(3 if index == 0 else 1):
            chore = _job(CHORE, min(prompt, 2000), rng.randint(15, 60))
            turns.append(Turn(number, chore, await send(chore)))
        await reading
        prompt += rng.randint(20, 150)
    return turns


def _job(model: str, prompt: int, answer: int) -> Job:
    return Job(asyncio.get_running_loop().time(), model, prompt, answer)


def chat_figures(turns: Sequence[Turn], served: Sequence[Served]) -> ChatFigures:
    """Return the figures of the chat; `served` are the same requests in the same order."""
    pairs = [(turn, one) for turn, one in zip(turns, served, strict=True) if turn.job.model == CHAT]
    last: dict[int, str] = {}
    flips = 0
    for turn, _ in pairs:
        name = key_of(turn.reply.served) if turn.reply.served else ""
        flips += last.get(turn.conversation, name) != name
        last[turn.conversation] = name
    took = [turn.reply.took_s for turn, _ in pairs]
    below = sum(one.is_below_best for _, one in pairs)
    return ChatFigures(len(pairs), below, flips, sum(took) / max(1, len(took)))
