"""Runners that the probe shows on the cards and `/api/ps` does not list: another client's load is under way, or an end.

Ollama lists a model when it is loaded, but its memory is taken before. A router that has just started, or that did not
cause the load, can explain that memory by nothing else: by a count of runners. One that stays for longer than a load
takes is another server's, and so is one that is on the cards for as long as the router runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from router.adapters.gpu.reading import GpuProcess
from router.backend.tracked import Tracked
from router.core.units import MIB

LEAST_BYTES = 512 * MIB
"""Less is the driver's context of a process that has no model: a server, its window, a query of the cards."""


class UnlistedRunners:
    """Which runners and which loads in ps are younger than `limit_s`: more runners than loads means one is unlisted.

    Both are counted by when they were first seen, so that what has been there for long explains nothing.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._runners: dict[int, float] = {}  # pid → when first seen
        self._listed: dict[tuple[str, int], float] = {}  # weights and number of the load → when first seen

    def note(self, processes: Iterable[GpuProcess], residents: Mapping[str, Tracked], now_s: float) -> None:
        """Take over a reading: the processes on the cards, and what ps lists."""
        held: Counter[int] = Counter()
        for process in processes:
            if process.may_be_runner:
                held[process.pid] += process.used_bytes or 0
        runners = [pid for pid, used_bytes in held.items() if used_bytes >= LEAST_BYTES]
        loads = [(weights, tracked.order) for weights, tracked in residents.items()]
        self._runners = {pid: self._runners.get(pid, now_s) for pid in runners}
        self._listed = {load: self._listed.get(load, now_s) for load in loads}

    def are_there(self, now_s: float) -> bool:
        """Return True if a runner is on the cards that ps does not list yet, or any more."""
        return self._young(self._runners.values(), now_s) > self._young(self._listed.values(), now_s)

    def _young(self, seen_s: Iterable[float], now_s: float) -> int:
        return sum(now_s - at_s < self._limit_s for at_s in seen_s)
