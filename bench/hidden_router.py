"""Server settings that change while the router runs: the spills of each model until the router has learned them.

    python bench/hidden_router.py [--rounds N]

The whole router in front of the simulated Ollama, in virtual time. Every model is requested once while the server is as
configured; then the server's KV type, slots or memory change silently, and each model is requested repeatedly (unloaded
in between, with and without a context of its own). A spill is a load that the simulated llama-server did not place
fully on the cards. Exit code 1 if a load after the first of a model spills.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from router.core.units import MIB

sys.path.insert(0, str(Path(__file__).parent.parent))

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.arithmetic import Buffer, RunnerPlan, RunnerSpec, SimModel
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig
from router.planning.stage import Stage, stage, table

MODELS = (
    "llama3.1:8b", "qwen3:8b", "gemma3:12b", "mistral:7b", "qwen3:14b", "qwen2.5:14b", "gpt-oss:20b", "llama3.2:3b",
    "qwen3:32b", "gemma3:4b", "qwen3:4b", "llama3.1:8b-instruct-q8_0",
)  # fmt: skip
ROUTER = {"defaults.auto_chains": "off", "queue.wait_s": 600}
CONTEXTS = (None, 4096, 16384)
MIN_CONTEXT = 8192  # the router's `defaults.min_num_ctx`, for requests that set no context


@dataclass
class Hidden:
    """llama-server's arithmetic with settings that the router does not know; `loads` are (model, is fully on GPU)."""

    kv_type: str | None = None
    slots: int = 0
    extra_bytes: int = 0
    inner: FootprintArithmetic = field(default_factory=FootprintArithmetic)
    loads: list[tuple[str, bool]] = field(default_factory=list)
    specs: dict[str, RunnerSpec] = field(default_factory=dict)

    def plan(self, spec: RunnerSpec, free: Sequence[int]) -> RunnerPlan:
        """Plan with the true settings."""
        found = self._plan(spec, free)
        self.specs[spec.model.name] = spec
        self.loads.append((spec.model.name, found.is_full))
        extra = (Buffer("context", 0, self.extra_bytes, 0),) if self.extra_bytes else ()
        return replace(found, buffers=(*found.buffers, *extra))

    def _plan(self, spec: RunnerSpec, free: Sequence[int]) -> RunnerPlan:
        true = replace(spec, kv_type=self.kv_type or spec.kv_type, num_parallel=self.slots or spec.num_parallel)
        return self.inner.plan(true, [max(0, have - self.extra_bytes) for have in free])

    def could_fit(self, model: str, num_ctx: int, free_bytes: int) -> bool:
        """Return whether a model would run fully on an empty card with `free_bytes`; False if it was never loaded."""
        spec = self.specs.get(model)
        return spec is not None and self._plan(replace(spec, num_ctx=num_ctx), [free_bytes]).is_full

    def projector_bytes(self, model: SimModel) -> int:
        """Return the projector's bytes, which no setting changes."""
        return self.inner.projector_bytes(model)


SCENARIOS = {
    "nothing hidden": Hidden(),
    "KV q8_0": Hidden(kv_type="q8_0"),
    "4 slots": Hidden(slots=4),
    "+700 MiB unexplained": Hidden(extra_bytes=700 * MIB),
    "4 slots and +700 MiB": Hidden(slots=4, extra_bytes=700 * MIB),
}


async def scenario(name: str, total_mib: int, rounds: int) -> tuple[list[int], int, int, int]:
    """Return what happened since the change: spills at the first, second, … load of a model, number of loads, refused
    requests, and those of them that would have fit.
    """
    hidden, change = Hidden(), SCENARIOS[name]
    speeds = Speeds(load_mib_per_s=50000, tokens_per_s=100, cpu_tokens_per_s=4)
    machine = Machine(cards=(CardSpec(name="CUDA0", total_mib=total_mib),), speeds=speeds)
    config = SimConfig(machine=machine, models=MODELS, arithmetic=hidden)
    refused = needless = 0
    async with stage(config, ROUTER) as one:
        for model in MODELS:
            await _ask(one, model, None)
        hidden.kv_type, hidden.slots, hidden.extra_bytes = change.kv_type, change.slots, change.extra_bytes
        hidden.loads.clear()
        for at in range(rounds):
            for model in MODELS:
                num_ctx = CONTEXTS[at % len(CONTEXTS)]
                is_refused = await _ask(one, model, num_ctx)
                free_bytes = total_mib * MIB - machine.cards[0].context_mib * MIB
                refused += is_refused
                needless += is_refused and hidden.could_fit(model, num_ctx or MIN_CONTEXT, free_bytes)
    spills, count = Counter[int](), Counter[str]()
    for model, is_full in hidden.loads:
        count[model] += 1
        spills[count[model]] += not is_full
    return [spills[at + 1] for at in range(max(count.values(), default=0))], len(hidden.loads), refused, needless


async def _ask(one: Stage, model: str, num_ctx: int | None) -> bool:
    """Send a short request and an unload; return True if the request was refused."""
    options = {"options": {"num_ctx": num_ctx}} if num_ctx else {}
    reply = await one.ask({"model": model, "prompt": "[[tokens=4]] hi", **options})
    await one.ask({"model": model, "keep_alive": 0})
    return reply.status != 200


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--total-mib", type=int, nargs="*", default=[12288, 24564])
    asked = parser.parse_args(arguments)
    rows, late = [], 0
    for name in SCENARIOS:
        for total_mib in asked.total_mib:
            spills, loads, refused, needless = run_virtual(scenario(name, total_mib, asked.rounds))
            late += sum(spills[1:])
            rows.append((name, total_mib, loads, spills, refused, needless))
    print(
        table(
            [
                (
                    "hidden since",
                    "card MiB",
                    "loads",
                    "spills at load 1, 2, … of a model",
                    "refused",
                    "although it fits",
                ),
                *rows,
            ]
        )
    )
    print(f"\nspills after the first load of a model: {late}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
