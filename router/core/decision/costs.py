"""What a switch costs, in seconds: the load, the unloads before it, and the reload of what will be wanted again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.core.decision.snapshot import Resident
from router.core.ollama.model import ModelFacts
from router.core.units import GIB


@dataclass(frozen=True, slots=True, eq=False)
class LoadCosts:
    """What loads and unloads took on one backend.

    `measured_s` maps weights to the seconds of their loads; for other weights `bytes_per_s` counts, the speed of all
    loads so far. `unload_s` is what one unload takes until its memory is free. `stays_s` maps weights to for how long
    after their loads nothing was unloaded, at least: as a rule until who had waited for them was answered.
    """

    bytes_per_s: float = float(GIB)
    unload_s: float = 1.0
    measured_s: Mapping[str, float] = field(default_factory=dict)
    stays_s: Mapping[str, float] = field(default_factory=dict)

    def load_s(self, weights: str, size_bytes: int) -> float:
        """Return how many seconds a load of these weights takes."""
        return self.measured_s.get(weights) or size_bytes / self.bytes_per_s

    def until_unload_s(self, weights: str, size_bytes: int) -> float:
        """Return for how many seconds nothing is unloaded once the load of these weights has begun, at least."""
        return self.load_s(weights, size_bytes) + self.stays_s.get(weights, 0.0)

    def switch_s(self, facts: ModelFacts, evicted: Iterable[Resident]) -> float:
        """Return how many seconds it costs to load `facts` in place of `evicted`.

        A resident in use, or used repeatedly just now, will be wanted again: its reload counts too.
        """
        cost_s = self.load_s(facts.weights, facts.size_bytes)
        for resident in evicted:
            cost_s += self.unload_s
            if resident.is_company:
                cost_s += self.load_s(resident.weights, resident.size_bytes)
        return cost_s
