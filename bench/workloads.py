"""Five kinds of ordinary traffic at realistic speeds: loads, spills, too small variants and waits, by rule.

usage: bench/workloads.py [--kind chat agent rag batch teams] [--seeds 1 2 3] [--cards 24] [--json FILE]
The same requests (router/planning/traffic.py) go to the simulated Ollama alone and through the router with its default
settings, on a virtual clock. Cards: 24, 48, 24+24 or 24+12 (GB). "below best" counts answers from a smaller variant
than the first of the chain that would have fitted, every resident evicted (router/planning/fitting.py, which shares
nothing with the router's decisions). A wait is from the request to the begin of service.
Exit code 1 if a request failed or was answered by a spilled model through the router.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.planning.measure import Figures, Foreign, body_of, figures, judged, path_of, play
from router.planning.stage import Reply, stage, table
from router.planning.traffic import KINDS, SPEEDS, Job, Traffic

CARDS_MIB = {"24": (24564,), "48": (49140,), "24+24": (24564, 24564), "24+12": (24564, 12282)}
TITLES = (
    "kind", "seed", "rule", "requests", "failed", "loads", "spilled", "unused", "answers spilled", "below best",
    "mean s", "p95 s", "p99 s", "total s",
)  # fmt: skip


async def run(traffic: Traffic, cards: Sequence[int], *, is_routed: bool) -> Figures:
    """Play the traffic on cards of these sizes (MiB) and return the figures."""
    specs = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(cards))
    config = SimConfig(machine=Machine(cards=specs, speeds=SPEEDS), models=traffic.models, seed=1)
    router_config = {"chains": {name: list(chain) for name, chain in traffic.chains.items()}} if is_routed else None
    async with stage(config, router_config) as one:
        foreign = Foreign(one)

        async def send(job: Job) -> Reply:
            return await one.ask(body_of(job), path_of(job))

        replies = await play(traffic.jobs, send)
        served = judged(one, zip(traffic.jobs, replies, strict=True), traffic.chains, foreign)
        return figures(one, served)


def rules(traffic: Traffic, cards: Sequence[int]) -> Iterable[tuple[str, Figures]]:
    """Yield the name and the figures of each rule."""
    yield "Ollama alone", run_virtual(run(traffic, cards, is_routed=False))
    yield "router", run_virtual(run(traffic, cards, is_routed=True))


def row(kind: str, seed: int, rule: str, found: Figures) -> tuple[object, ...]:
    """Return one line of the table."""
    values = asdict(found).values()
    return (kind, seed, rule, *(round(value, 2) if isinstance(value, float) else value for value in values))


def main() -> int:
    """Play every kind and seed by every rule, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cards", choices=CARDS_MIB, default="24")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[tuple[object, ...]] = [TITLES]
    found: list[dict[str, object]] = []
    is_good = True
    for kind in asked.kind:
        for seed in asked.seeds:
            for rule, one in rules(KINDS[kind](seed), CARDS_MIB[asked.cards]):
                rows.append(row(kind, seed, rule, one))
                found.append({"kind": kind, "seed": seed, "cards": asked.cards, "rule": rule, **asdict(one)})
                print(*rows[-1], file=sys.stderr, flush=True)
                is_good &= rule != "router" or not (one.failed or one.spilled_answers)
    print(table(rows))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
