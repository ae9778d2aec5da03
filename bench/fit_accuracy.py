"""Accuracy of the footprint against llama.cpp's own plans: errors per term and architecture, and decisions.

    python bench/fit_accuracy.py [DIR] [--json FILE]

DIR holds memory.csv, decisions.csv and models/*.json, or their gz forms as `tests/data/fit` does (the default). A
`vram_truth.csv` in it or in its parent is compared too. Exit code 1 if a bound is missed, 2 if DIR cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

from fit_truth import print_truth

from ollama_simulator.recorded.plans import MIB, Recordings, Row, cards_of, is_whole, options_of
from router.core.learning.residuals import Learned, Observation
from router.core.memory import placement, shape
from router.core.memory.architectures import UNKNOWN
from router.core.memory.footprint import Footprint, footprint, known_footprint
from router.core.memory.options import MemoryOptions
from router.core.memory.placement import place
from router.core.ollama.model import ModelFacts

TERMS = ("weights", "caches", "compute", "sum")


@dataclass(frozen=True)
class Errors:
    """The errors of one row by term: computed less recorded, in MiB; `recorded_mib` are the recorded values."""

    row: Row
    error_mib: dict[str, float]
    recorded_mib: dict[str, float]


@dataclass(frozen=True)
class Bound:
    """One bound: `value`, a share or a count over `of` rows, must be at least `least`."""

    text: str
    value: float
    least: float
    of: int

    @property
    def holds(self) -> bool:
        return self.of == 0 or self.value >= self.least


def errors_of(recordings: Recordings, arch: str = "") -> list[Errors]:
    """Return the errors of the rows of memory.csv.

    Recorded weights and caches are rounded down, so a surplus of up to 1 MiB counts as exact.
    """
    found = []
    for row in (row for row in recordings.memory if arch in {"", row["arch"]}):
        known = footprint(recordings.facts[row["model"], row["quant"]], options_of(row), backend="plain")
        recorded = {
            name: float(row[f"{key}_mib"]) for name, key in zip(TERMS, ("model", "context", "compute"), strict=False)
        }
        computed = _terms(known)
        error = {name: computed[name] - recorded[name] for name in recorded}
        for name in ("weights", "caches"):
            error[name] = max(0.0, error[name] - 1) if error[name] > 0 else error[name]
        recorded["sum"], error["sum"] = sum(recorded.values()), sum(error.values())
        found.append(Errors(row, error, recorded))
    return found


def _terms(known: Footprint) -> dict[str, float]:
    caches = known.kv_bytes + known.state_bytes
    return {"weights": known.weights_bytes / MIB, "caches": caches / MIB, "compute": known.compute_bytes / MIB}


def print_errors(errors: list[Errors]) -> None:
    """Print median, p95 and worst absolute error per term and architecture."""
    print(f"{'architecture':<18}{'rows':>5}" + "".join(f"{term + ' median p95 worst':>32}" for term in TERMS))
    groups: dict[str, list[Errors]] = defaultdict(list)
    for error in errors:
        groups[error.row["arch"]].append(error)
    for arch, of_arch in [*sorted(groups.items()), ("all", errors)]:
        cells = "".join(f"{_three(sorted(abs(one.error_mib[term]) for one in of_arch)):>32}" for term in TERMS)
        print(f"{arch:<18}{len(of_arch):>5}{cells}")


def _three(sizes: list[float]) -> str:
    return f"{median(sizes):.1f} {sizes[int(0.95 * (len(sizes) - 1))]:.1f} {sizes[-1]:.1f}" if sizes else "-"


def within(error: Errors, term: str, share: float, min_mib: float) -> bool:
    """Return True if the error is at most `share` of the recorded value or at most `min_mib`."""
    return abs(error.error_mib[term]) <= max(share * error.recorded_mib[term], min_mib)


def memory_bounds(errors: list[Errors]) -> list[Bound]:
    plain = [one for one in errors if one.row["kv_type"] == "f16" and one.row["flash_attn"] != "off"]
    return [
        _share("weights within 1 MiB", [within(one, "weights", 0, 1) for one in errors], 1.0),
        _share("caches within 1 MiB", [within(one, "caches", 0, 1) for one in errors], 1.0),
        _share("compute within 1 % or 4 MiB (f16, FA)", [within(one, "compute", 0.01, 4) for one in plain], 0.85),
        _share("compute within 10 % or 64 MiB (all)", [within(one, "compute", 0.10, 64) for one in errors], 0.99),
        _share("sum within 2 % or 100 MiB", [within(one, "sum", 0.02, 100) for one in errors], 0.995),
    ]


def _share(text: str, good: list[bool], least: float) -> Bound:
    return Bound(text, sum(good) / len(good) if good else 1.0, least, len(good))


Placer = Callable[[ModelFacts, MemoryOptions, Row], bool]


def placed(safety_bytes: int | None) -> Placer:
    """Return a placer that decides each row by `place` alone."""
    return lambda facts, options, row: (
        place(facts, options, cards_of(row), backend="plain", safety_bytes=safety_bytes).fits
    )


def placed_after_one_load(recordings: Recordings) -> Placer:
    """Return a placer that decides as after one verified load of each model (its first recorded run)."""
    first: dict[str, Row] = {}
    for row in recordings.memory:
        first.setdefault(f"{row['model']}:{row['quant']}", row)
    seen = [_observation(recordings, row) for row in first.values()]
    learned = Learned.of(seen)

    def decide(facts: ModelFacts, options: MemoryOptions, row: Row) -> bool:
        residual, safety, _ = learned.residual_bytes(facts.weights, options, ("virtual",), "1")
        cards = cards_of(row)
        found = place(facts, options, cards, backend="plain", safety_bytes=safety, residual_bytes=residual)
        return found.fits

    return decide


def _observation(recordings: Recordings, row: Row) -> Observation:
    facts, options = recordings.facts[row["model"], row["quant"]], options_of(row)
    measured = sum(float(row[f"{key}_mib"]) for key in ("model", "context", "compute"))
    predicted = footprint(facts, options, backend="plain").need_bytes
    return Observation(
        facts.weights, options.num_ctx, options.num_batch, options.num_parallel, options.kv_type, ("virtual",), "1",
        int(measured * MIB), predicted, spilled=False, free_before_bytes=0, at_s=0.0,
    )  # fmt: skip


def decide(recordings: Recordings, rows: Iterable[Row], placer: Placer) -> dict[tuple[str, str], dict[str, int]]:
    """Count decisions by (cards, size): agree, optimistic (predicted to fit, but spilled), pessimistic."""
    table: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        key = ("one card" if int(row["n_devices"]) == 1 else "several", "whole GiB" if is_whole(row) else "edge")
        counts = table.setdefault(key, {"agree": 0, "optimistic": 0, "pessimistic": 0})
        fits, is_full = (
            placer(recordings.facts[row["model"], row["quant"]], options_of(row), row),
            row["verdict"] == "full",
        )
        counts["agree" if fits == is_full else "optimistic" if fits else "pessimistic"] += 1
    return dict(sorted(table.items(), reverse=True))


def print_decisions(title: str, table: dict[tuple[str, str], dict[str, int]]) -> None:
    print(f"\n{title:<44}{'agree':>8}{'optimistic':>12}{'pessimistic':>13}")
    for (cards, size), counts in table.items():
        print(f"  {cards + ', ' + size:<42}{counts['agree']:>8}{counts['optimistic']:>12}{counts['pessimistic']:>13}")


def decision_bounds(recordings: Recordings) -> list[Bound]:
    """Print the decision tables and return the bounds on them."""
    rows = recordings.decisions
    bare = decide(recordings, rows, placed(0))
    cautious = decide(recordings, rows, placed(None))
    learned = decide(recordings, rows, placed_after_one_load(recordings))
    print_decisions("decisions, safety 0", bare)
    print_decisions("decisions, default safety", cautious)
    print_decisions("decisions, after one load of each model", learned)
    whole = sum(is_whole(row) for row in rows)
    edge = len(rows) - whole
    return [
        Bound("whole-GiB cards right, safety 0", 1 - _share_of(bare, "optimistic", "pessimistic"), 1.0, whole),
        Bound("none optimistic, default safety", 1 - _share_of(cautious, "optimistic"), 1.0, whole),
        Bound("not pessimistic, default safety", 1 - _share_of(cautious, "pessimistic"), 0.97, whole),
        Bound("edge rows optimistic, negative", -_count(cautious, "edge", "optimistic"), -2, edge),
        Bound("none optimistic after one load", 1 - _share_of(learned, "optimistic"), 1.0, whole),
        Bound("not pessimistic after one load", 1 - _share_of(learned, "pessimistic"), 0.99, whole),
    ]


def _count(table: dict[tuple[str, str], dict[str, int]], size: str, kind: str) -> int:
    return sum(counts[kind] for (_, of), counts in table.items() if of == size)


def _share_of(table: dict[tuple[str, str], dict[str, int]], *kinds: str) -> float:
    whole = sum(_count(table, "whole GiB", kind) for kind in ("agree", "optimistic", "pessimistic"))
    return sum(_count(table, "whole GiB", kind) for kind in kinds) / max(1, whole)


def print_left_out(recordings: Recordings) -> None:
    """Print the errors of each architecture without its row in the table: the general rule must not underestimate."""
    print(f"\n{'left out of the table':<18}{'rows':>5}{'error of the sum, MiB: least median most':>44}{'decisions':>12}"
          f"{'optimistic':>12}{'pessimistic':>13}")  # fmt: skip
    for arch in sorted({row["arch"] for row in recordings.memory}):
        with patch.object(shape, "architecture", lambda _name: UNKNOWN):
            _forget()
            errors = errors_of(recordings, arch)
            rows = [row for row in recordings.decisions if row["arch"] == arch]
            table = decide(recordings, rows, placed(None))
        sums = sorted(one.error_mib["sum"] for one in errors)
        three = f"{sums[0]:.0f} {median(sums):.0f} {sums[-1]:.0f}"
        optimistic = sum(counts["optimistic"] for counts in table.values())
        pessimistic = sum(counts["pessimistic"] for counts in table.values())
        print(f"{arch:<18}{len(errors):>5}{three:>44}{len(rows):>12}{optimistic:>12}{pessimistic:>13}")
    _forget()


def _forget() -> None:
    shape.shape_of.cache_clear()
    known_footprint.cache_clear()
    placement.layer_sums.cache_clear()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent.parent / "tests" / "data" / "fit")
    parser.add_argument("--json", type=Path, help="write the bounds to this file")
    asked = parser.parse_args(arguments)
    recordings = Recordings(asked.folder)
    try:
        errors, _ = errors_of(recordings), recordings.decisions
    except (OSError, KeyError, ValueError) as exc:
        print(f"{asked.folder} cannot be read: {exc!r}", file=sys.stderr)
        return 2
    print_errors(errors)
    bounds = [*memory_bounds(errors), *decision_bounds(recordings)]
    print_left_out(recordings)
    print_truth(recordings)
    print()
    for bound in bounds:
        verdict = "ok  " if bound.holds else "MISS"
        print(f"{verdict} {bound.text:<42}{bound.value:>9.4f}  bound {bound.least:<6} ({bound.of} rows)")
    if asked.json:
        asked.json.write_text(json.dumps([{**vars(bound), "holds": bound.holds} for bound in bounds], indent=1))
    return 0 if all(bound.holds for bound in bounds) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
