"""Random machines of one to eight cards, without fallbacks: loads that spilled, and refusals of what fits.

usage: bench/machines.py [--series NAME …] [--machines 60] [--seed 1]

One client per machine asks for one model after the other. Counted are loads, not answers: a load that spills is
repeated or undone before anybody is answered, but it has cost its time. Series: `equal` (4 × 24 GB), `fixed` (six
machines of two to four cards), `random` (one to eight cards of any size), `permuted` (24 + 12 and 48 + 12 GB, which
the probe lists in another order than Ollama), `old` (one card without flash attention). Exit code 1 if a load spilled,
or a request was refused although the empty machine holds its model.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.planning.holding import Sums, fits_empty, installed
from router.planning.stage import stage, table
from router.telemetry import Event, Spilled

MODELS = (
    "qwen3:32b", "gemma3:27b", "gpt-oss:20b", "qwen3:14b", "gemma3:12b", "llama3.1:8b", "qwen3:8b", "mistral:7b",
    "qwen3:4b", "llama3.2:3b", "llama3.2:1b",
)  # fmt: skip
CONTEXTS = (4096, 8192, 16384, 32768)
PAUSES_S = (0, 1, 5)
SIZES_MIB = (8192, 12288, 16384, 24564, 32768, 49152)
FIXED_MIB = (
    (24564, 24564), (24564, 12288), (12288, 12288), (24564, 24564, 24564), (49152, 24564, 12288),
    (16384, 16384, 12288, 8192),
)  # fmt: skip
ROUTER = {"defaults.auto_chains": "off"}


@dataclass(frozen=True)
class Run:
    """One machine, one client, `requests` requests."""

    machine: Machine
    seed: int
    requests: int


@dataclass
class Counts(Sums):
    """Counts over all runs of a series. `evicted` are evictions by Ollama itself."""

    requests: int = 0
    loads: int = 0
    spilled: int = 0
    evicted: int = 0
    refused: int = 0
    refused_but_fits: int = 0


class _Spills:
    """A hook that counts loads which spilled."""

    def __init__(self) -> None:
        self.count = 0

    def on(self, event: Event) -> None:
        """Count `event` if it is a spill."""
        self.count += isinstance(event, Spilled)


def machine_of(sizes_mib: Sequence[int], bus: tuple[int, ...] = (), compute: str = "8.6") -> Machine:
    """Return a machine with cards of these sizes; `bus` is the order in which the probe lists them."""
    cards = tuple(
        CardSpec(name=f"CUDA{index}", total_mib=size, compute=compute) for index, size in enumerate(sizes_mib)
    )
    return Machine(cards=cards, speeds=Speeds(load_mib_per_s=3000, tokens_per_s=100), bus=bus)


def random_machine(seed: int) -> Machine:
    """Return a machine of one to eight cards of any size."""
    rng = random.Random(seed)
    return machine_of([rng.choice(SIZES_MIB) for _ in range(rng.randint(1, 8))])


def series(machines: int, seed: int) -> Mapping[str, Iterator[Run]]:
    """Return the runs of each series; `machines` is the number of random ones."""
    permuted = [machine_of(sizes, bus=(1, 0)) for sizes in ((24564, 12288), (49152, 12288))]
    return {
        "equal": (Run(machine_of((24564,) * 4), seed + at, 24) for at in range(8)),
        "fixed": (Run(machine_of(sizes), seed + at, 24) for sizes in FIXED_MIB for at in range(8)),
        "random": (Run(random_machine(seed + at), seed + at, 16) for at in range(machines)),
        "permuted": (Run(machine, seed + at, 24) for machine in permuted for at in range(6)),
        "old": (Run(machine_of((size,), compute="5.2"), seed + at, 16) for size in SIZES_MIB for at in range(2)),
    }


async def counted(run: Run, facts: Mapping[str, ModelFacts]) -> Counts:
    """Return the counts of one run."""
    rng, counts, spills = random.Random(run.seed), Counts(), _Spills()
    config = SimConfig(machine=run.machine, models=MODELS, seed=run.seed)
    async with stage(config, ROUTER, hooks=(spills,)) as one:
        for _ in range(run.requests):
            model, num_ctx = rng.choice(MODELS), rng.choice(CONTEXTS)
            options = {"num_ctx": num_ctx, "num_predict": 4}
            reply = await one.ask({"model": model, "prompt": "[[tokens=4]] hi", "options": options})
            counts.requests += 1
            if reply.status != 200:
                counts.refused += 1
                counts.refused_but_fits += fits_empty(facts[key_of(model)], num_ctx, one.sim.cards.gpus())
            await asyncio.sleep(rng.choice(PAUSES_S))
        counts.loads, counts.evicted, counts.spilled = len(one.loads), len(one.evictions), spills.count
    return counts


def main() -> int:
    """Run the series that were asked for, and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", default=["equal", "fixed", "random", "permuted", "old"])
    parser.add_argument("--machines", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    facts, runs = run_virtual(installed(MODELS)), series(asked.machines, asked.seed)
    names = list(Counts.__dataclass_fields__)
    rows, is_sound = [], True
    for name in asked.series:
        total = Counts()
        for run in runs[name]:
            total.add(run_virtual(counted(run, facts)))
        rows.append((name, *(getattr(total, field) for field in names)))
        is_sound = is_sound and not total.spilled and not total.refused_but_fits
    print(table([("series", *(name.replace("_", " ") for name in names)), *rows]))
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
