"""A seeded trace of mixed requests to 8 chains on one 24 GB card, while other programs take and release VRAM.

usage: bench/trace.py [--requests 2000] [--seed 1] [--clients 4] [--foreign between|during] [--json FILE]
The same trace is sent to the simulated Ollama directly and through the router, both on a virtual clock. The other
programs change what they hold between requests, or also during loads: then up to as much as is free at the moment.
Of the answers from a smaller variant than the requested one, those "below best" were avoidable: a bigger one would have
fitted all the time while the request waited, every resident evicted (router/planning/fitting.py).
Exit code 1 if a spilled model answered through the router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from router.core.units import MIB

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.planning.measure import Foreign, figures, judged
from router.planning.stage import Reply, Stage, mean, p95, stage, table
from router.planning.traffic import Job

LADDER = (
    "llama3.3:70b-instruct-q4_K_M",
    "qwen3:32b",
    "gemma3:27b",
    "gpt-oss:20b",
    "llama3.1:8b-instruct-fp16",
    "qwen3:14b",
    "llama3.1:8b-instruct-q8_0",
    "qwen3:8b",
    "llama3.1:8b",
    "mistral:7b",
    "qwen3:4b",
    "llama3.2:3b",
    "llama3.2:1b",
)
ASKED = (*LADDER[:6], "llama3.1:8b", "llama3.2:3b")
LEVELS_MIB = (0, 0, 3000, 6000, 10000, 14000)  # what other programs hold
CONTEXTS = (None, None, None, 4096, 8192, 16384, 32768)
SPEED = Speeds(load_mib_per_s=6000, tokens_per_s=60, cpu_tokens_per_s=4)


def chains() -> dict[str, list[str]]:
    """Return the chains: each requested model, followed by all smaller ones."""
    return {name: list(LADDER[LADDER.index(name) :]) for name in ASKED}


async def play(
    seed: int, count: int, clients: int, router_config: Mapping[str, object] | None, *, moves_during_loads: bool = False
) -> dict[str, object]:
    """Run the trace and return its summary."""
    machine = Machine(cards=(CardSpec(),), speeds=SPEED)
    config = SimConfig(machine=machine, models=LADDER, seed=seed)
    async with stage(config, router_config) as one:
        foreign = Foreign(one)
        if moves_during_loads:
            one.watchers.append(_during_loads(one, foreign, random.Random(f"during {seed}")))
        replies = await _clients(one, foreign, seed, count, clients)
        return _summed(replies, one, foreign)


def _during_loads(one: Stage, foreign: Foreign, rng: random.Random) -> Callable[[str, str], None]:
    """Return the watcher that lets other programs take or release memory while a model is loaded, every other time."""

    def move() -> None:
        held_bytes = int(one.sim.cards.machine.cards[0].foreign_mib * MIB)
        foreign.take(0, min(rng.choice(LEVELS_MIB) * MIB, held_bytes + one.sim.cards.free_bytes(0)))

    def watch(kind: str, _model: str) -> None:
        if kind == "starting" and rng.random() < 0.5:
            asyncio.get_running_loop().call_later(rng.uniform(0.05, 2.0), move)

    return watch


async def _clients(one: Stage, foreign: Foreign, seed: int, count: int, clients: int) -> list[tuple[Job, Reply]]:
    rng = random.Random(seed)
    jobs = [(rng.choice(ASKED), rng.choice(CONTEXTS), rng.choice((16, 32, 64))) for _ in range(count)]
    levels = {index: rng.choice(LEVELS_MIB) for index in range(0, count, 25)}
    waiting = list(enumerate(jobs))[::-1]
    replies: list[tuple[Job, Reply]] = []

    async def client() -> None:
        while waiting:
            index, (model, num_ctx, tokens) = waiting.pop()
            if index in levels:
                foreign.take(0, levels[index] * MIB)
            body: dict[str, object] = {"model": model, "prompt": f"[[tokens={tokens}]] why?", "stream": True}
            if num_ctx:
                body["options"] = {"num_ctx": num_ctx}
            reply = await one.ask(body)
            replies.append((Job(reply.asked_s, model, 6, tokens, num_ctx), reply))
            await asyncio.sleep(random.Random(index).expovariate(1.0))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


def _summed(replies: list[tuple[Job, Reply]], one: Stage, foreign: Foreign) -> dict[str, object]:
    served = judged(one, replies, {name: tuple(chain) for name, chain in chains().items()}, foreign)
    found = figures(one, served)
    done = [each.reply for each in served if each.is_answered]
    return {
        "requests": found.requests,
        "answered": len(done),
        "refused": found.failed,
        "spilled": found.spilled_answers,
        "spilled share": f"{found.spilled_answers / max(1, len(done)):.1%}",
        "by a smaller variant": sum(reply.served != reply.asked for reply in done),
        "below best": found.below_best,
        "loads": found.loads,
        "spilled loads": found.spilled_loads,
        "unused loads": found.unused_loads,
        "evicted by Ollama": len(one.evictions),
        "mean first token s": round(mean([reply.ttft_s for reply in done]), 2),
        "p95 first token s": round(p95([reply.ttft_s for reply in done]), 2),
        "mean tokens/s": round(mean([reply.tokens_per_s for reply in done]), 1),
        "total s": round(found.total_s, 1),
        "errors": sorted({reply.error[:40] for _, reply in replies if reply.error})[:2],
    }


def main() -> int:
    """Run the trace with and without the router, and print both summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--foreign", choices=("between", "during"), default="between")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    routed_config: dict[str, object] = {"chains": chains()}
    is_during = asked.foreign == "during"
    alone, routed = (
        run_virtual(play(asked.seed, asked.requests, asked.clients, config, moves_during_loads=is_during))
        for config in (None, routed_config)
    )
    print(table([("", "Ollama alone", "router"), *((key, alone[key], routed[key]) for key in alone)]))
    if asked.json:
        asked.json.write_text(json.dumps({"alone": alone, "router": routed}, indent=2))
    return 1 if routed["spilled"] else 0


if __name__ == "__main__":
    sys.exit(main())
