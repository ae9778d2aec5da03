"""For benches over random machines: what an empty one holds by the router's own arithmetic, and counts that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ollama_simulator.server import SimConfig, running_simulator
from router.adapters.catalog import CatalogReader
from router.adapters.ollama import OllamaClient
from router.core.decision.context import ContextNeed
from router.core.decision.load_context import plan_switch
from router.core.decision.need import MachineRules
from router.core.decision.plan import Plan
from router.core.decision.snapshot import Snapshot
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions


@dataclass
class Sums:
    """Base of counts over several runs: all fields are numbers."""

    def add(self, other: Sums) -> None:
        """Add the counts of `other`, which has the same fields."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


async def installed(models: tuple[str, ...]) -> Mapping[str, ModelFacts]:
    """Return the facts of `models` by canonical name, as the catalog reads them."""
    async with running_simulator(SimConfig(models=models)) as sim:
        client = OllamaClient(sim.url)
        try:
            return await CatalogReader(client).refresh()
        finally:
            await client.aclose()


def fits_empty(facts: ModelFacts, num_ctx: int, gpus: Sequence[Gpu], safety_bytes: int | None = None) -> bool:
    """Return whether `gpus` hold the model when they are empty, on one card or split (batch 512).

    `safety_bytes` is left free on each card; None = the router's own safety.
    """
    empty = Snapshot(tuple(replace(gpu, free_bytes=gpu.total_bytes) for gpu in gpus))
    need, rules = ContextNeed(num_ctx, num_ctx), MachineRules(safety_bytes=safety_bytes)
    return isinstance(plan_switch(facts, LoadOptions(num_batch=512), need, empty, rules), Plan)
