"""The router's predictions against the simulated scheduler: the outcome is always among the predicted ones."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.recorded.recordings import read_models
from ollama_simulator.scheduler.engine import Engine
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.ollama.scheduler import LoadOutcome, foresee_load

MODELS = list(read_models(Path(__file__).parents[2] / "data" / "scheduler").values())
MACHINES = ((24564,), (12288,), (24564, 12288), (8192, 8192), (12288, 12288, 24564))


async def _one_sequence(seed: int) -> list[str]:
    """Load idle models in turn and return outcomes that were not predicted. Loads that run out of memory do not count:
    the router sends no load that does not fit."""
    chance = random.Random(seed)
    specs = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(chance.choice(MACHINES)))
    settings = ServerSettings(num_parallel=chance.choice((1, 1, 2)), sched_spread=chance.random() < 0.2)
    gone: list[str] = []
    failed: list[str] = []
    names = {model.name: model.blob for model in MODELS}

    def note(what: str, name: str, detail: str) -> None:
        if what == "unloaded":
            gone.append(names[name])
        elif what == "load_failed":
            failed.append(detail)

    surprises = []
    book = Cards(Machine(cards=specs, speeds=Speeds(load_mib_per_s=30000, tokens_per_s=100, cpu_tokens_per_s=4)))
    async with Engine(book, settings, arithmetic=FootprintArithmetic(), seed=seed, on_event=note) as engine:
        for turn in range(12):
            model = chance.choice(MODELS)
            asked = LoadOptions(
                num_ctx=chance.choice((None, 2048, 8192, 32768)), main_gpu=chance.choice((None, None, 0))
            )
            if chance.random() < 0.15:
                _let_others_take(book, chance.randrange(len(specs)), chance.choice((0, 2000, 6000)) << 20)
            residents = engine.residents()
            if model.blob in {resident.weights for resident in residents}:
                continue
            seen = foresee_load(model.facts, asked, engine.gpus(), residents, settings, blob_bytes=model.blob_bytes)
            gone.clear()
            failed.clear()
            async with await engine.acquire(model, asked) as lease:
                happened = LoadOutcome(tuple(gone), lease.cards, lease.num_batch)
                if not failed and (lease.num_ctx != seen.num_ctx or happened not in seen.outcomes):
                    surprises.append(f"seed {seed} turn {turn} {model.name}: {happened} not in {seen.outcomes}")
            await asyncio.sleep(0.5)
    return surprises


def _let_others_take(book: Cards, card: int, size: int) -> None:
    """Let other programs take free memory, at most all of it."""
    book.set_foreign(card, 0)
    book.set_foreign(card, min(size, book.free_bytes(card)))


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_every_outcome_was_predicted(first: int) -> None:
    """Evictions in their order, cards and batch, in random sequences on one to three cards."""
    surprises = [text for seed in range(first, first + 10) for text in run_virtual(_one_sequence(seed))]
    assert not surprises
