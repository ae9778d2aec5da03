"""A seeded trace of mixed requests to 8 chains on one 24 GB card, while other programs take and release VRAM.

usage: bench/trace.py [--requests 2000] [--seed 1] [--clients 4] [--json FILE]
The same trace is sent to the simulated Ollama directly and through the router, both on a virtual clock.
Exit code 1 if a spilled model answered through the router.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path

from router.core.units import MIB

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.planning.stage import Reply, Stage, mean, p95, stage, table

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
CONTEXTS = (None, None, None, 4096, 8192, 16384, 32768)
SPEED = Speeds(load_mib_per_s=6000, tokens_per_s=60, cpu_tokens_per_s=4)


def chains() -> dict[str, list[str]]:
    """Return the chains: each requested model, followed by all smaller ones."""
    return {name: list(LADDER[LADDER.index(name) :]) for name in ASKED}


async def play(seed: int, count: int, clients: int, router_config: Mapping[str, object] | None) -> dict[str, object]:
    """Run the trace and return its summary."""
    machine = Machine(cards=(CardSpec(),), speeds=SPEED)
    config = SimConfig(machine=machine, models=LADDER, seed=seed)
    async with stage(config, router_config) as one:
        started_s = asyncio.get_running_loop().time()
        replies = await _clients(one, seed, count, clients)
        took_s = asyncio.get_running_loop().time() - started_s
        return _summed(replies, one, took_s)


async def _clients(one: Stage, seed: int, count: int, clients: int) -> list[Reply]:
    rng = random.Random(seed)
    jobs = [(rng.choice(ASKED), rng.choice(CONTEXTS), rng.choice((16, 32, 64))) for _ in range(count)]
    foreign = {index: rng.choice((0, 0, 3000, 6000, 10000, 14000)) for index in range(0, count, 25)}
    waiting = list(enumerate(jobs))[::-1]
    replies: list[Reply] = []

    async def client() -> None:
        while waiting:
            index, (model, num_ctx, tokens) = waiting.pop()
            if index in foreign:
                one.sim.cards.set_foreign(0, foreign[index] * MIB)
            body: dict[str, object] = {"model": model, "prompt": f"[[tokens={tokens}]] why?", "stream": True}
            if num_ctx:
                body["options"] = {"num_ctx": num_ctx}
            replies.append(await one.ask(body))
            await asyncio.sleep(random.Random(index).expovariate(1.0))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


def _summed(replies: list[Reply], one: Stage, took_s: float) -> dict[str, object]:
    done = [reply for reply in replies if reply.status == 200]
    spilled = [reply for reply in done if reply.tokens_per_s < 0.95 * float(SPEED.tokens_per_s or 1)]
    swapped = [reply for reply in done if reply.served != reply.asked]
    return {
        "requests": len(replies),
        "answered": len(done),
        "refused": len(replies) - len(done),
        "spilled": len(spilled),
        "spilled share": f"{len(spilled) / max(1, len(done)):.1%}",
        "by a smaller variant": len(swapped),
        "loads": len(one.loads),
        "evicted by Ollama": len(one.evictions),
        "mean first token s": round(mean([reply.ttft_s for reply in done]), 2),
        "p95 first token s": round(p95([reply.ttft_s for reply in done]), 2),
        "mean tokens/s": round(mean([reply.tokens_per_s for reply in done]), 1),
        "total s": round(took_s, 1),
        "errors": sorted({reply.error[:40] for reply in replies if reply.error})[:2],
    }


def main() -> int:
    """Run the trace with and without the router, and print both summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    routed_config: dict[str, object] = {"chains": chains()}
    alone = run_virtual(play(asked.seed, asked.requests, asked.clients, None))
    routed = run_virtual(play(asked.seed, asked.requests, asked.clients, routed_config))
    print(table([("", "Ollama alone", "router"), *((key, alone[key], routed[key]) for key in alone)]))
    if asked.json:
        asked.json.write_text(json.dumps({"alone": alone, "router": routed}, indent=2))
    return 1 if routed["spilled"] else 0


if __name__ == "__main__":
    sys.exit(main())
