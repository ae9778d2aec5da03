"""How long the arithmetic of a decision takes: footprints and placements of 8 variants on 8 cards, and one cold model.

    python bench/fit_speed.py

Prints medians. The bounds of the project: 200 µs for 8 × 8 once the models are known, 100 ms for `fit` and `advise`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from fit_data import Recordings

from router.core import placement, shape
from router.core.advice import advise, examine
from router.core.footprint import known_footprint
from router.core.options import RunOptions
from router.core.placement import Card, max_num_ctx, place

GIB = 1 << 30
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
    options = RunOptions(8192)

    def eight_by_eight() -> None:
        for facts in variants:
            for card in CARDS:
                place(facts, options, (card,))

    def forget() -> None:
        shape.shape_of.cache_clear()
        known_footprint.cache_clear()
        placement._layer_sums.cache_clear()

    cards = tuple(CARDS[:2])
    _print("8 variants × 8 cards, options seen before", 200, _time(eight_by_eight, 200))
    _print("8 variants × 8 cards, all for the first time", 100_000, _time(eight_by_eight, 20, before=forget))
    _print("split over two cards", 100_000, _time(lambda: place(variants[0], options, cards), 200))
    _print("largest context, one card", 100_000, _time(lambda: max_num_ctx(variants[0], options, cards), 50))
    _print("fit, cold", 100_000, _time(lambda: examine(variants[0], options, cards), 20, before=forget))
    _print("advise, cold", 100_000, _time(lambda: advise(variants[0], variants, options, cards), 20, before=forget))
    return 0


def _time(work: Callable[[], object], rounds: int, before: Callable[[], None] = lambda: None) -> float:
    """Median microseconds of `work`, after one round to warm up."""
    work()
    times = []
    for _ in range(rounds):
        before()
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times) * 1e6


def _print(what: str, bound_us: float, found_us: float) -> None:
    print(f"{what:<48}{found_us:>10.0f} µs   bound {bound_us:.0f}")


if __name__ == "__main__":
    sys.exit(main())
