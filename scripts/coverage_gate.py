"""Which share of each room's code the tests have run: `coverage_gate.py`, after a run of pytest with --cov-branch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LEAST_PERCENT = {
    "core": 100,
    "adapters": 95,
    "admin": 95,
    "api": 95,
    "backend": 95,
    "config": 95,
    "http": 95,
    "routing": 95,
}
"""Of the lines, and of the branches."""


class Share(NamedTuple):
    """Percent of a room's lines and branches that were run."""

    lines: float
    branches: float


def shares(report: Mapping[str, Any]) -> Iterator[tuple[str, Share]]:
    """Yield each room with its share, from coverage's JSON report. A room without a measured file has none."""
    for room in LEAST_PERCENT:
        sums = [file["summary"] for name, file in report["files"].items() if name.startswith(f"router/{room}/")]

        def percent(covered: str, all_: str, sums: list[dict[str, int]] = sums) -> float:
            return 100 * sum(one[covered] for one in sums) / (sum(one[all_] for one in sums) or sys.maxsize)

        yield room, Share(percent("covered_lines", "num_statements"), percent("covered_branches", "num_branches"))


def main() -> int:
    """Print the table; 1 where a room has less than it must."""
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    is_short = False
    for room, share in shares(report):
        least = LEAST_PERCENT[room]
        is_short |= (fails := min(share) < least)
        print(f"{room:10} lines {share.lines:6.2f}  branches {share.branches:6.2f}  least {least}{' FAILS' * fails}")
    if is_short:
        print("what is missing: .venv/bin/python -m coverage report --include='router/ROOM/*'", file=sys.stderr)
    return is_short


if __name__ == "__main__":
    sys.exit(main())
