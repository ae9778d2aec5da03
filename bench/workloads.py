"""Ordinary traffic of five kinds at realistic speeds, by rule: loads, spills, too small variants, waits.

usage: bench/workloads.py [--kind chat agent rag batch teams open-webui] [--seeds 1 2 3] [--cards 24] [--json FILE]
       [--rule NAME …] [--requests N]
The same requests (router/planning/traffic.py) go, on a virtual clock, to the simulated Ollama alone, through the router
with its default settings, and in the order of two plain rules (router/planning/baselines.py). Two limits are computed:
the best schedule found by a clairvoyant search, and a wait that no rule can beat (router/planning/bound.py).
Cards: 24, 48, 24+24 or 24+12 (GB). A wait is from the request to the begin of service. "below best": answers from a
smaller variant than the first of the chain that would have fitted, every resident evicted (router/planning/fitting.py,
which shares nothing with the router's decisions). "spilled": loads with some of the model on the CPU. "unused": loads
that were unloaded again before they answered anybody. open-webui: conversations whose chores go to a small model.
Exit code 1 if a request failed or was answered by a spilled model through the router. docs/benches.md explains more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.planning import open_webui
from router.planning.baselines import BATCH, FIFO, Rule, tickets
from router.planning.bound import best_found, least_mean_wait_s
from router.planning.costs import Run
from router.planning.costs import run as run_on_costs
from router.planning.direct import Direct
from router.planning.measure import Foreign, body_of, figures, judged, path_of, play
from router.planning.stage import Reply, percentile, stage, table
from router.planning.traffic import KINDS, SPEEDS, Job, Traffic

Found = dict[str, Any]
CARDS_MIB = {"24": (24564,), "48": (49140,), "24+24": (24564, 24564), "24+12": (24564, 12282)}
BASELINES = {"first come": FIFO, "batch by model": BATCH}
RULES = ("Ollama alone", "router", *BASELINES, "best found", "bound")
TITLES = {
    "kind": "kind", "seed": "seed", "rule": "rule", "requests": "requests", "failed": "failed", "loads": "loads",
    "spilled_loads": "spilled", "unused_loads": "unused", "spilled_answers": "answers spilled",
    "below_best": "below best", "mean_s": "mean s", "p95_s": "p95 s", "p99_s": "p99 s", "total_s": "total s",
    "flips": "flips", "mean_turn_s": "mean turn s",
}  # fmt: skip
OPEN_WEBUI = "open-webui"


def sim_config(models: Sequence[str], cards: tuple[CardSpec, ...]) -> SimConfig:
    """Return the configuration of the simulated Ollama."""
    return SimConfig(machine=Machine(cards=cards, speeds=SPEEDS), models=models, seed=1)


async def requests(traffic: Traffic, cards: tuple[CardSpec, ...], router: Mapping[str, object] | None) -> Found:
    """Play the traffic to Ollama, through the router unless `router` is None, and return the figures."""
    async with stage(sim_config(traffic.models, cards), router) as one:
        foreign = Foreign(one)

        async def send(job: Job) -> Reply:
            return await one.ask(body_of(job), path_of(job))

        replies = await play(traffic.jobs, send)
        served = judged(one, zip(traffic.jobs, replies, strict=True), traffic.chains, foreign)
        return asdict(figures(one, served))


async def in_order(traffic: Traffic, cards: tuple[CardSpec, ...], rule: Rule) -> Found:
    """Play the traffic to Ollama in the order of a plain rule, and return the figures."""
    async with stage(sim_config(traffic.models, cards), None) as one:
        foreign = Foreign(one)
        wanted = {id(ticket.job): ticket for ticket in tickets(traffic.jobs, traffic.chains, cards)}
        direct = Direct(one, rule)
        replies = await play(traffic.jobs, lambda job: direct.send(wanted[id(job)]))
        served = judged(one, zip(traffic.jobs, replies, strict=True), traffic.chains, foreign)
        return asdict(figures(one, served))


async def conversations(seed: int, cards: tuple[CardSpec, ...], router: Mapping[str, object] | None) -> Found:
    """Play Open WebUI's pattern: two people at a time, no chain configured."""
    async with stage(sim_config(open_webui.INSTALLED, cards), router) as one:
        foreign = Foreign(one)

        async def send(job: Job) -> Reply:
            return await one.ask(body_of(job), path_of(job))

        turns = await open_webui.converse(seed, 2, send)
        served = judged(one, [(turn.job, turn.reply) for turn in turns], open_webui.CHAINS, foreign)
        return {**asdict(figures(one, served)), **asdict(open_webui.chat_figures(turns, served))}


def of_run(found: Run) -> Found:
    """Return the figures of a run on the cost model."""
    p95_s, p99_s = percentile(found.waits_s, 0.95), percentile(found.waits_s, 0.99)
    return {"loads": found.loads, "mean_s": found.mean_s, "p95_s": p95_s, "p99_s": p99_s}


def measured(
    kind: str, seed: int, cards: tuple[CardSpec, ...], wanted_rules: Sequence[str], most: int | None = None
) -> Iterator[Found]:
    """Yield the figures of each rule for one kind and seed; `most` requests of it, if given."""
    if kind == OPEN_WEBUI:
        for rule, router in (("Ollama alone", None), ("router", {})):
            if rule in wanted_rules:
                yield {"rule": rule, **run_virtual(conversations(seed, cards, router))}
        return
    traffic = KINDS[kind](seed)
    traffic = replace(traffic, jobs=traffic.jobs[:most])
    chains = {"chains": {name: list(chain) for name, chain in traffic.chains.items()}}
    for rule in wanted_rules:
        if rule in ("Ollama alone", "router"):
            router = chains if rule == "router" else None
            yield {"rule": rule, **run_virtual(requests(traffic, cards, router))}
        elif rule in BASELINES:
            on_costs = run_on_costs(tickets(traffic.jobs, traffic.chains, cards), cards, SPEEDS, BASELINES[rule])
            found = run_virtual(in_order(traffic, cards, BASELINES[rule]))
            yield {"rule": rule, **found, "cost_model_mean_s": on_costs.mean_s, "cost_model_loads": on_costs.loads}
        else:
            yield {"rule": rule, **limit(rule, traffic, cards)}


def limit(rule: str, traffic: Traffic, cards: tuple[CardSpec, ...]) -> Found:
    """Return the figures of a limit."""
    wanted = tickets(traffic.jobs, traffic.chains, cards)
    if rule == "bound":
        return {"mean_s": least_mean_wait_s(wanted, cards, SPEEDS)}
    return of_run(best_found(wanted, cards, SPEEDS)[1])


def row(found: Found) -> tuple[object, ...]:
    """Return one line of the table."""
    values = (found.get(name, "") for name in TITLES)
    return tuple(round(value, 2) if isinstance(value, float) else value for value in values)


def main() -> int:
    """Play every kind and seed by every rule, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=[*KINDS, OPEN_WEBUI], default=[*KINDS, OPEN_WEBUI])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cards", choices=CARDS_MIB, default="24")
    parser.add_argument("--rule", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--requests", type=int, help="only the first of each kind")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    sizes = CARDS_MIB[asked.cards]
    cards = tuple(CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(sizes))
    found: list[Found] = []
    for kind in asked.kind:
        for seed in asked.seeds:
            for one in measured(kind, seed, cards, asked.rule, asked.requests):
                found.append({"kind": kind, "seed": seed, "cards": asked.cards, **one})
                print(*row(found[-1]), file=sys.stderr, flush=True)
    print(table([tuple(TITLES.values()), *(row(one) for one in found)]))
    for one in found:
        if "cost_model_mean_s" in one:
            loads, mean_s = one["cost_model_loads"], one["cost_model_mean_s"]
            print(f"{one['kind']} {one['seed']}, {one['rule']} on the cost model: {loads} loads, mean {mean_s:.2f} s")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))
    routed = [one for one in found if one["rule"] == "router"]
    return 1 if any(one["failed"] or one["spilled_answers"] for one in routed) else 0


if __name__ == "__main__":
    sys.exit(main())
