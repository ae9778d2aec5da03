"""Server settings that change while the router runs: the spills of each model until they are learned; core only.

    python bench/hidden_settings.py [--free-mib N ...]

The router assumes f16 and one slot, and has learned on such a server for two rounds. Then the server's settings change;
its loads follow llama.cpp's arithmetic with the true settings. Each model is loaded repeatedly, alternately with the
largest context that fits (as `choose` does) and with a small one. Prints the spills at the first, second, … load of a
model since the change. Exit code 1 if a load after the first of a model spills.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ollama_simulator.recorded.plans import MIB, Recordings
from router.core.learning.residuals import Learned, Observation
from router.core.memory.footprint import footprint
from router.core.memory.options import MemoryOptions
from router.core.memory.placement import Card, place
from router.core.ollama.model import ModelFacts

STEP, MOST, LEAST = 2048, 32768, 2048
ROUNDS_BEFORE = 2
CONTEXT_BYTES = 300 * MIB
VERSION, GPUS = "0.33.0", ("RTX 3090",)


@dataclass(frozen=True)
class Truth:
    """The true settings of the server."""

    name: str
    assumed_kv: str = "f16"
    kv_type: str = "f16"
    slots: int = 1
    extra_bytes: int = 0
    is_blind: bool = False

    def options(self, asked: MemoryOptions) -> MemoryOptions:
        return replace(asked, kv_type=self.kv_type, num_parallel=self.slots)


SCENARIOS = (
    Truth("nothing hidden"),
    Truth("KV q8_0, assumed f16", kv_type="q8_0"),
    Truth("KV f16, assumed q8_0", assumed_kv="q8_0"),
    Truth("4 slots, assumed 1", slots=4),
    Truth("+700 MiB unexplained", extra_bytes=700 * MIB),
    Truth("4 slots and +700 MiB", slots=4, extra_bytes=700 * MIB),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--free-mib", type=int, nargs="*", default=[11500, 23800, 48000])
    parser.add_argument("--blind", action="store_true", help="without ps sizes and cache bytes in the observations")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    recordings = Recordings(Path(__file__).parent.parent / "tests" / "data" / "fit")
    models = list({name: facts for (name, quant), facts in recordings.facts.items() if quant == "Q4_K_M"}.values())
    print(f"{'hidden setting':<24}{'free MiB':>9}{'models':>8}   {'spills at load 1, 2, …':<28}last context / best")
    late = 0
    for truth in SCENARIOS:
        for free_mib in asked.free_mib:
            spills, share, count = _scenario(models, replace(truth, is_blind=asked.blind), free_mib * MIB, asked.rounds)
            late += sum(spills[1:])
            print(f"{truth.name:<24}{free_mib:>9}{count:>8}   {spills!s:<28}{share:>6.1%}")
    print(f"\nspills after the first load of a model: {late}")
    return 1 if late else 0


def _scenario(models: list[ModelFacts], truth: Truth, free_bytes: int, rounds: int) -> tuple[list[int], float, int]:
    """Return the spills at the first, second, … load of a model, the mean share of the best context that the last round
    reached, and the number of models loaded.
    """
    seen: list[Observation] = []
    spills, shares, loads = [0] * rounds, [], Counter[str]()
    plain = Truth("before", assumed_kv=truth.assumed_kv, kv_type=truth.assumed_kv, is_blind=truth.is_blind)
    for at in range(-ROUNDS_BEFORE, rounds):
        now = truth if at >= 0 else plain
        for facts in models:
            learned = Learned.of(seen)
            chosen = _choose(facts, truth, free_bytes, learned, fixed=LEAST if at % 2 and at < rounds - 1 else None)
            if chosen is None:
                continue
            is_spilled, observation = _load(facts, chosen, now, free_bytes, float(len(seen)))
            seen.append(observation)
            if at < 0:
                continue
            spills[loads[facts.name]] += is_spilled
            loads[facts.name] += 1
            best = next((num_ctx for num_ctx in _contexts(facts) if _fits(facts, num_ctx, truth, free_bytes)), 0)
            if at == rounds - 1 and best:
                shares.append(chosen.num_ctx / best)
    return spills, sum(shares) / len(shares) if shares else 1.0, len(loads)


def _contexts(facts: ModelFacts) -> Iterator[int]:
    most = min(MOST, facts.context_length)
    return iter(range(most, 0, -STEP))


def _choose(
    facts: ModelFacts, truth: Truth, free_bytes: int, learned: Learned, fixed: int | None
) -> MemoryOptions | None:
    """Return options with the largest context that is predicted to fit, or with `fixed` if that fits; else None."""
    for num_ctx in (fixed,) if fixed else _contexts(facts):
        options = MemoryOptions(num_ctx, kv_type=truth.assumed_kv)
        residual, safety, _ = learned.residual_bytes(facts.weights, options, GPUS, VERSION)
        card = Card(0, free_bytes, CONTEXT_BYTES)
        if learned.banned(facts.weights, options, free_bytes, now_s=1e6):
            continue
        if place(facts, options, [card], safety_bytes=safety, residual_bytes=residual).fits:
            return options
    return None


def _fits(facts: ModelFacts, num_ctx: int, truth: Truth, free_bytes: int) -> bool:
    need = footprint(facts, truth.options(MemoryOptions(num_ctx))).need_bytes + truth.extra_bytes
    return need + CONTEXT_BYTES + (1 << 30) <= free_bytes


def _load(
    facts: ModelFacts, asked: MemoryOptions, truth: Truth, free_bytes: int, now_s: float
) -> tuple[bool, Observation]:
    """Return whether a load with the true settings spills, and its observation by probe and `/api/ps`."""
    need = footprint(facts, truth.options(asked)).need_bytes
    known = footprint(facts, asked)
    is_spilled = not _fits(facts, asked.num_ctx, truth, free_bytes)
    room = free_bytes - CONTEXT_BYTES - truth.extra_bytes - (1 << 30)
    on_card = min(need, room) if is_spilled else need
    return is_spilled, Observation(
        facts.weights, asked.num_ctx, asked.num_batch, asked.num_parallel, asked.kv_type, GPUS, VERSION,
        measured_bytes=on_card + CONTEXT_BYTES + truth.extra_bytes,
        predicted_bytes=known.need_bytes + CONTEXT_BYTES,
        spilled=is_spilled,
        free_before_bytes=free_bytes,
        at_s=1e6 - 1000 + now_s,
        size_bytes=0 if truth.is_blind else need,
        size_vram_bytes=0 if truth.is_blind else on_card,
        cache_bytes=0 if truth.is_blind else known.kv_bytes + known.state_bytes,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
