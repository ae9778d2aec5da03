"""Random request sequences on 1, 2 and 3 cards, without fallbacks: loads that spilled although they fit.

usage: bench/spills.py [--sequences 2000] [--seed 1]
A sequence is 8 requests of one client. "Fits" means fully on the GPUs of the empty machine, on one card or split, to
the last byte; "fits safely" also leaves the router's safety margin free. "spilled loads" also counts those that were
noticed and thrown away before anybody was answered, "unused loads" all that were. Exit code 1 if through the router a
load spilled, or a model was refused although it fits safely.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.planning.holding import Sums, fits_empty, installed
from router.planning.measure import by_model, is_spilled, unused
from router.planning.stage import Reply, stage, table

SIZES_MIB = (8192, 12288, 16384, 24564, 32768, 49152)
MODELS = (
    "llama3.3:70b-instruct-q2_K", "qwen3:32b", "gemma3:27b", "gpt-oss:20b", "qwen3:14b", "gemma3:12b",
    "llama3.1:8b", "qwen3:8b", "mistral:7b", "qwen3:4b", "llama3.2:3b",
)  # fmt: skip
CONTEXTS = (4096, 8192, 16384, 32768)
STEPS = 8
ROUTER = {"defaults.auto_chains": "off", "queue.wait_s": 600}


@dataclass
class Counts(Sums):
    """Counts over all sequences."""

    requests: int = 0
    spilled: int = 0
    spilled_but_fits: int = 0
    refused: int = 0
    refused_but_fits: int = 0
    refused_but_fits_safely: int = 0
    evicted: int = 0
    loads: int = 0
    spilled_loads: int = 0
    unused_loads: int = 0


async def sequence(seed: int, router: Mapping[str, object] | None, facts: Mapping[str, ModelFacts]) -> Counts:
    """Return the counts of one sequence: one machine, one client, eight requests."""
    rng = random.Random(seed)
    cards = tuple(
        CardSpec(name=f"CUDA{index}", total_mib=rng.choice(SIZES_MIB)) for index in range(rng.choice((1, 2, 2, 3)))
    )
    speeds = Speeds(load_mib_per_s=50000, tokens_per_s=100, cpu_tokens_per_s=4)
    config = SimConfig(machine=Machine(cards=cards, speeds=speeds), models=MODELS, seed=seed)
    counts = Counts()
    replies: list[Reply] = []
    async with stage(config, router) as one:
        for _ in range(STEPS):
            model, num_ctx = rng.choice(MODELS), rng.choice(CONTEXTS)
            body = {"model": model, "prompt": "[[tokens=4]] hi", "options": {"num_ctx": num_ctx}}
            reply = await one.ask(body)
            replies.append(reply)
            counts.requests += 1
            gpus = one.sim.cards.gpus()
            fits, is_safe = (fits_empty(facts[key_of(model)], num_ctx, gpus, safety) for safety in (0, None))
            if reply.status != 200:
                counts.refused += 1
                counts.refused_but_fits += fits
                counts.refused_but_fits_safely += is_safe
            elif is_spilled(reply, by_model(one.loaded)):
                counts.spilled += 1
                counts.spilled_but_fits += fits
            await asyncio.sleep(rng.choice((0.0, 1.0, 10.0)))
        counts.evicted, counts.loads = len(one.evictions), len(one.loads)
        counts.spilled_loads = sum(load.is_spilled for load in one.loaded)
        counts.unused_loads = unused(one, replies)
    return counts


def main() -> int:
    """Run all sequences with and without the router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    alone, routed, facts = Counts(), Counts(), run_virtual(installed(MODELS))
    for number in range(asked.sequences):
        alone.add(run_virtual(sequence(asked.seed * 100_000 + number, None, facts)))
        routed.add(run_virtual(sequence(asked.seed * 100_000 + number, ROUTER, facts)))
    names = list(Counts.__dataclass_fields__)
    rows = [(name.replace("_", " "), getattr(alone, name), getattr(routed, name)) for name in names]
    print(table([("", "Ollama alone", "router"), *rows]))
    return 1 if routed.spilled or routed.spilled_loads or routed.refused_but_fits_safely else 0


if __name__ == "__main__":
    sys.exit(main())
