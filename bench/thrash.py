"""Alternating models that do not fit together: loads and waits, with and without the router.

usage: bench/thrash.py [--requests 20 200]
Cases: two models in turn, three in turn, one hot and one rare. All requests are sent within seconds, on a virtual
clock; the simulator has Ollama's own delays (250 ms polls, up to 5 s after an eviction).
Exit code 1 if the router needs more than a fifth of Ollama's loads in the first case, or a request failed or spilled.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.planning.measure import by_model, is_spilled
from router.planning.stage import Reply, mean, p95, stage, table

A, B, C = "qwen3:14b", "gemma3:12b", "llama3.1:8b-instruct-fp16"
SPEED = Speeds(load_mib_per_s=6000, tokens_per_s=60, cpu_tokens_per_s=4)
ROUTER = {"defaults.auto_chains": "off", "queue.wait_s": 3600}
CASES: dict[str, tuple[tuple[str, ...], Callable[[int], str]]] = {
    "two in turn": ((A, C), lambda index: (A, C)[index % 2]),
    "three in turn": ((A, B, C), lambda index: (A, B, C)[index % 3]),
    "one hot, one rare": ((A, C), lambda index: C if index % 10 == 9 else A),
}


async def play(
    names: tuple[str, ...], pick: Callable[[int], str], count: int, router: Mapping[str, object] | None
) -> list[object]:
    """Send `count` requests 20 ms apart, wait for all answers, and return the row of the table."""
    config = SimConfig(machine=Machine(cards=(CardSpec(),), speeds=SPEED), models=names)
    async with stage(config, router) as one:

        async def send(index: int) -> Reply:
            await asyncio.sleep(index * 0.02)
            options = {"num_ctx": 16384}
            return await one.ask({"model": pick(index), "prompt": "[[tokens=16]] hi", "options": options})

        replies = await asyncio.gather(*(send(index) for index in range(count)))
        waits = [reply.ttft_s for reply in replies]
        bad = sum(reply.status != 200 for reply in replies)
        loads = by_model(one.loaded)
        spilled = sum(is_spilled(reply, loads) for reply in replies if reply.status == 200)
        return [len(one.loads), round(mean(waits), 1), round(p95(waits), 1), round(max(waits), 1), bad, spilled]


def main() -> int:
    """Print all cases with and without the router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[20, 200])
    asked = parser.parse_args()
    rows: list[tuple[object, ...]] = [
        ("case", "requests", "through", "loads", "mean s", "p95 s", "max s", "failed", "spilled")
    ]
    is_good = True
    for name, (models, pick) in CASES.items():
        for count in asked.requests:
            alone = run_virtual(play(models, pick, count, None))
            routed = run_virtual(play(models, pick, count, ROUTER))
            rows += [(name, count, "Ollama", *alone), (name, count, "router", *routed)]
            if name == "two in turn":
                is_good &= int(str(routed[0])) * 5 <= int(str(alone[0]))
            is_good &= routed[4] == 0 and routed[5] == 0
    print(table(rows))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
