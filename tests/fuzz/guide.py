"""Which inputs are worth changing further: those after which something new has happened.

What has happened is seen from outside: the kinds and texts of the router's events, and how long the loop was held, by
powers of two. That finds most of what coverage of lines would find, without a tracer, which would hold the loop itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection

MOST_SEEDS, MOST_BYTES = 300, 64 << 10
QUICK_MS = 4.0
"""Shorter times are all the same."""


class Guide:
    """Collects `seeds`, beginning with `first`; larger inputs than `MOST_BYTES` are none."""

    def __init__(self, first: Collection[bytes]) -> None:
        self.seeds = [data for data in first if len(data) <= MOST_BYTES]
        self.seen: set[str] = set()

    def note(self, data: bytes, said: Collection[str], lag_s: float) -> None:
        """Keep `data` if one of the events, or the time, was not there before."""
        news = {*said, f"{int(math.log2(max(QUICK_MS, lag_s * 1000)))} ms"} - self.seen
        self.seen |= news
        if news and len(data) <= MOST_BYTES and len(self.seeds) < MOST_SEEDS:
            self.seeds.append(data)
