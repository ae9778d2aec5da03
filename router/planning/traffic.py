"""Seeded traffic: what people and programs ask of one server, as a list of requests with their times.

Each kind is open-loop: a request comes at its time, whatever became of those ahead of it, so that every rule meets the
same requests. Lengths and pauses are those of ordinary use; only the seed varies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ollama_simulator.machine.spec import Speeds

SPEEDS = Speeds(load_mib_per_s=3072, prompt_tokens_per_s=8000)
"""Loads at 3 GiB/s, tokens at the memory bandwidth of an RTX A5000, prompts as with a warm prompt cache."""

QWEN = ("qwen3:32b", "qwen3:14b", "qwen3:8b", "qwen3:4b")
GEMMA = ("gemma3:27b", "gemma3:12b", "gemma3:4b", "gemma3:1b")
LLAMA = ("llama3.1:8b-instruct-fp16", "llama3.1:8b-instruct-q8_0", "llama3.1:8b", "llama3.2:3b", "llama3.2:1b")
MISTRAL = ("mistral-small:24b", "ministral-3:8b", "mistral:7b")
FAMILIES = (QWEN, GEMMA, LLAMA, MISTRAL)
EMBEDDER = "bge-m3:567m"
EMBEDDERS = frozenset({EMBEDDER})


@dataclass(frozen=True, slots=True)
class Job:
    """One request: when it comes, the model that it names, and its size in tokens.

    `num_ctx` is the context that it names, if any. `embeds`: it wants vectors of its prompt, not an answer.
    """

    at_s: float
    model: str
    prompt_tokens: int
    answer_tokens: int
    num_ctx: int | None = None
    embeds: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests of one kind and seed, in order of time, and the chain of each model that they name."""

    kind: str
    jobs: tuple[Job, ...]
    chains: Mapping[str, tuple[str, ...]]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model of the chains."""
        return tuple(dict.fromkeys(tag for chain in self.chains.values() for tag in chain))


def family_chain(model: str) -> tuple[str, ...]:
    """Return `model` and the smaller members of its family; the model alone if it has none."""
    for family in FAMILIES:
        if model in family:
            return family[family.index(model) :]
    return (model,)


def _traffic(kind: str, jobs: Iterable[Job]) -> Traffic:
    ordered = tuple(sorted(jobs, key=lambda job: job.at_s))
    named = sorted({job.model for job in ordered})
    return Traffic(kind, ordered, {model: family_chain(model) for model in named})


def _answer_s(tokens: int) -> float:
    """Return about how long an answer of a mid-sized model takes: what a person or an agent waits before going on."""
    return tokens / 35


def _conversations(
    rng: random.Random, model: str, until_s: float, *, think_s: float, pause_s: float, num_ctx: int | None = None
) -> Iterator[Job]:
    """Yield the turns of one person: conversations of 3 to 10 turns that grow, think times, pauses between them."""
    at_s = rng.uniform(0, pause_s)
    while at_s < until_s:
        prompt = rng.randint(100, 600)
        for _ in range(rng.randint(3, 10)):
            answer = rng.randint(80, 320)
            if at_s < until_s:
                yield Job(at_s, model, prompt, answer, num_ctx)
            at_s += _answer_s(answer) + 5 + rng.expovariate(1 / think_s)
            prompt += answer + rng.randint(20, 150)
        at_s += rng.expovariate(1 / pause_s)


def chat(seed: int) -> Traffic:
    """Let six people chat with models of four families, one with a context of their own."""
    rng = random.Random(f"chat {seed}")
    people = (
        (QWEN[0], None), (QWEN[0], None), (QWEN[1], 16384), (GEMMA[0], None), (GEMMA[1], None), (MISTRAL[0], None),
    )  # fmt: skip
    return _traffic(
        "chat",
        (
            job
            for model, num_ctx in people
            for job in _conversations(rng, model, 2600, think_s=32, pause_s=90, num_ctx=num_ctx)
        ),
    )


def _agent(rng: random.Random, model: str, until_s: float) -> Iterator[Job]:
    """Yield the steps of one agent: each right after the last, the context growing by what tools return."""
    at_s = rng.uniform(0, 5)
    while at_s < until_s:
        prompt = rng.randint(3000, 5000)
        for _ in range(rng.randint(20, 60)):
            answer = rng.randint(25, 90)
            if at_s < until_s:
                yield Job(at_s, model, prompt, answer)
            at_s += prompt / SPEEDS.prompt_tokens_per_s + _answer_s(answer) + rng.expovariate(1 / 1.5)
            prompt = min(prompt + answer + rng.randint(50, 600), 24000)
        at_s += rng.uniform(3, 15)


def agent(seed: int) -> Traffic:
    """Let two agents run without pause, with contexts that grow to 24,000 tokens, beside a chat with a large model."""
    rng = random.Random(f"agent {seed}")
    jobs = [*_agent(rng, QWEN[1], 1500), *_agent(rng, LLAMA[2], 1500)]
    return _traffic("agent", [*jobs, *_conversations(rng, QWEN[0], 1500, think_s=40, pause_s=60)])


def _ingest(rng: random.Random, until_s: float) -> Iterator[Job]:
    """Yield bursts of documents to embed."""
    at_s = rng.uniform(10, 60)
    while at_s < until_s:
        for _ in range(rng.randint(20, 60)):
            yield Job(at_s, EMBEDDER, rng.randint(200, 500), 0, embeds=True)
            at_s += rng.uniform(0.02, 0.2)
        at_s += rng.expovariate(1 / 120)


def rag(seed: int) -> Traffic:
    """Ask questions over documents: an embedding, then a 14B with the passages found; ingests; a 27B now and then."""
    rng = random.Random(f"rag {seed}")
    jobs, at_s = list(_ingest(rng, 1450)), rng.uniform(0, 10)
    while at_s < 1450:
        jobs.append(Job(at_s, EMBEDDER, rng.randint(10, 40), 0, embeds=True))
        jobs.append(Job(at_s + 0.2, QWEN[1], rng.randint(1500, 5000), rng.randint(60, 250)))
        at_s += rng.expovariate(1 / 14)
    at_s = rng.uniform(20, 90)
    while at_s < 1450:
        jobs.append(Job(at_s, GEMMA[0], rng.randint(300, 2000), rng.randint(80, 300)))
        at_s += rng.expovariate(1 / 75)
    return _traffic("rag", jobs)


def batch(seed: int) -> Traffic:
    """Shuffle a nightly batch: 380 short jobs for three large models."""
    rng = random.Random(f"batch {seed}")
    jobs, at_s = [], 0.0
    for _ in range(380):
        model = rng.choice((GEMMA[0], MISTRAL[0], LLAMA[0]))
        jobs.append(Job(at_s, model, rng.randint(100, 900), rng.randint(8, 32)))
        at_s += rng.expovariate(1 / 1.5)
    return _traffic("batch", jobs)


HEADS = (QWEN[1], GEMMA[0], QWEN[0], LLAMA[2], MISTRAL[0], GEMMA[1], LLAMA[0], QWEN[2])
"""The models that teams name, the most popular first."""


def teams(seed: int) -> Traffic:
    """Let twelve people of several teams name one of eight models each time, by Zipf's law."""
    rng = random.Random(f"teams {seed}")
    weights = [1 / (rank + 1) for rank in range(len(HEADS))]
    jobs = []
    for _ in range(12):
        at_s = rng.expovariate(1 / 130)
        while at_s < 2700:
            (model,) = rng.choices(HEADS, weights)
            num_ctx = rng.choice((None, None, None, None, 16384))
            jobs.append(Job(at_s, model, rng.randint(100, 3000), rng.randint(60, 260), num_ctx))
            at_s += rng.expovariate(1 / 135)
    return _traffic("teams", jobs)


KINDS: Mapping[str, Callable[[int], Traffic]] = {
    "chat": chat, "agent": agent, "rag": rag, "batch": batch, "teams": teams,
}  # fmt: skip
