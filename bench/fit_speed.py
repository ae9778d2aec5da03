"""Duration of a decision's arithmetic: footprints and placements of 8 variants on 8 cards, and one cold model.

    python bench/fit_speed.py

Prints medians of CPU time of this thread: a decision does no I/O, and CPU time depends least on what else runs on the
machine. The bounds of the project: 200 µs for 8 × 8 once the models are known, 100 ms for `fit` and `advise`. `choose`
gets a chain of which only the last variant fits, so that every variant is tried on every card. With residents it must
look for victims: there the 99th percentile over random machines counts; that of the least times shows how much of it
is the other work of the machine.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import thread_time

from ollama_simulator.recorded.plans import Recordings
from router.core.advice.advise import advise, examine
from router.core.decision.chain import Chain, Variant
from router.core.decision.need import MachineRules
from router.core.decision.policy import choose
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.verdict import Rules
from router.core.memory import placement, shape
from router.core.memory.footprint import known_footprint
from router.core.memory.options import MemoryOptions
from router.core.memory.placement import Card, max_num_ctx, place
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.payload.read import InferenceRequest
from router.core.units import GIB

RULES = Rules()
CROWDED = Rules(machine=MachineRules(ServerSettings(max_loaded_models=16)))
CARDS = [Card(index, (8 + 10 * index) * GIB, 300 << 20) for index in range(8)]
VARIANTS = (
    "llama3.3-70b",
    "qwen3-32b",
    "gemma3-12b",
    "qwen2.5-14b",
    "qwen3-8b",
    "gpt-oss-20b",
    "gemma3-4b",
    "qwen3-1.7b",
)


def main() -> int:
    recordings = Recordings(Path(__file__).parent.parent / "tests" / "data" / "fit")
    known = {name: facts for (name, _), facts in recordings.facts.items()}
    variants = [known[name] for name in VARIANTS]
    options = MemoryOptions(8192)

    def eight_by_eight() -> None:
        for facts in variants:
            for card in CARDS:
                place(facts, options, (card,))

    completes = frozenset({"completion"})
    named = [replace(known[name], name=f"{name}:x", capabilities=completes) for name in VARIANTS]
    chain = Chain(named[0].name, tuple(Variant(facts.name) for facts in named))
    gpus = tuple(Gpu(index, f"GPU-{index}", "card", 24 * GIB, 4 * GIB, 300 << 20, "8.6") for index in range(8))
    snapshot = Snapshot(gpus[:1], catalog={key_of(facts.name): facts for facts in named})
    everywhere = replace(snapshot, gpus=gpus)
    request = InferenceRequest(model=chain.name, num_ctx=4096, needs=frozenset({"completion"}))

    wishes = [InferenceRequest(chain.name, num_ctx=num_ctx, needs=completes) for num_ctx in (None, 4096, 32768)]

    def forget() -> None:
        shape.shape_of.cache_clear()
        known_footprint.cache_clear()
        placement.layer_sums.cache_clear()

    cards = tuple(CARDS[:2])
    _print("8 variants × 8 cards, options seen before", 200, _time(eight_by_eight, 200))
    _print("8 variants × 8 cards, all for the first time", 100_000, _time(eight_by_eight, 20, before=forget))
    _print("choose: 8 variants, 1 card", 200, _time(lambda: choose(request, chain, snapshot, RULES), 50))
    _print("choose: 8 variants, 8 cards", 200, _time(lambda: choose(request, chain, everywhere, RULES), 50))
    copies = [replace(facts, name=f"{facts.name}-{number}") for number in range(125) for facts in named]
    crowd = replace(snapshot, catalog=snapshot.catalog | {key_of(facts.name): facts for facts in copies})
    _print("choose: 8 variants, 1,000 models installed", 1000, _time(lambda: choose(request, chain, crowd, RULES), 50))
    for cards_count in (1, 2, 4, 8):
        for residents in (3, 6, 9, 12):
            crowds = [_crowd(cards_count, residents, named, seed) for seed in range(40)]
            found = [_times(partial(choose, wish, chain, crowd, CROWDED), 5) for crowd in crowds for wish in wishes]
            least = f"   least {_percentile([min(times) for times in found]) * 1e6:.0f}"
            p99 = _percentile([median(times) for times in found]) * 1e6
            _print(f"choose: {residents} residents, {cards_count} cards, p99", 1000, p99, least)
    _print("split over two cards", 100_000, _time(lambda: place(variants[0], options, cards), 200))
    _print("largest context, one card", 100_000, _time(lambda: max_num_ctx(variants[0], options, cards), 50))
    _print("fit, cold", 100_000, _time(lambda: examine(variants[0], options, cards), 20, before=forget))
    _print("advise, cold", 100_000, _time(lambda: advise(variants[0], variants, options, cards), 20, before=forget))
    return 0


def _crowd(cards: int, residents: int, chain: Sequence[ModelFacts], seed: int) -> Snapshot:
    """Return a machine whose cards are nearly full: `residents` on single cards, and one over all of them."""
    rng = random.Random(seed)
    totals = [rng.choice((16, 24, 32, 48)) * GIB for _ in range(cards)]
    free, found = list(totals), []
    for order in range(residents):
        card = order % cards
        split = range(cards) if order == residents - 1 and cards > 1 else (card,)
        share = totals[card] * cards // residents if len(split) == 1 else 2 * GIB
        held = {index: min(free[index], int(share * rng.uniform(0.7, 1))) for index in split}
        before = {index: free[index] for index in split}
        free = [left - held.get(index, 0) for index, left in enumerate(free)]
        size = sum(held.values()) * 9 // 10
        options = LoadOptions(num_ctx=8192, num_batch=512, main_gpu=card if len(split) == 1 and cards > 1 else None)
        found.append(
            Resident(
                f"other{order}:x", f"sha256-other{order}", size, size, 8192, held, before, options, order,
                in_flight=int(rng.random() < 0.2), kept=rng.random() < 0.1,
            )
        )  # fmt: skip
    gpus = tuple(
        Gpu(index, f"GPU-{index}", "card", total, left, 300 << 20, "8.6")
        for index, (total, left) in enumerate(zip(totals, free, strict=True))
    )
    return Snapshot(gpus, tuple(found), catalog={key_of(facts.name): facts for facts in chain})


def _percentile(times_us: Sequence[float]) -> float:
    return sorted(times_us)[int(len(times_us) * 0.99)]


def _time(work: Callable[[], object], rounds: int, before: Callable[[], None] = lambda: None) -> float:
    """Return the median duration of `work` in µs, after one round to warm up."""
    return median(_times(work, rounds, before)) * 1e6


def _times(work: Callable[[], object], rounds: int, before: Callable[[], None] = lambda: None) -> list[float]:
    """Return the durations of `work` in seconds, after one round to warm up."""
    work()
    times = []
    for _ in range(rounds):
        before()
        start = thread_time()
        work()
        times.append(thread_time() - start)
    return times


def _print(what: str, bound_us: float, found_us: float, more: str = "") -> None:
    print(f"{what:<48}{found_us:>10.0f} µs   bound {bound_us:.0f}{more}")


if __name__ == "__main__":
    sys.exit(main())
