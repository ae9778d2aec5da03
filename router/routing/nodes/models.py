"""The models of this node for its fronts, with what they need on its cards: sized beside requests, a few at a time."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterator

from router.core.decision.need import need_of
from router.core.decision.placing import least_of_split
from router.core.nodes.catalog import MOST_MODELS, NodeCatalog, NodeModel, NodeNeed
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.routing.fleet.place import Place

LOOK_S = 0.25
"""How often it is checked whether models, cards, or what was learned have changed."""

AT_ONCE = 16
"""Models that are sized between two pauses: about a millisecond."""


class NodeModels:
    """Keeps the catalog of the node that owns the Ollama of `place`."""

    def __init__(self, place: Place) -> None:
        self._backend = place.backend
        self._catalog: NodeCatalog | None = None
        self._made_of: list[object] = []
        self._kinds: list[tuple[object, ...]] = []
        self._making = asyncio.Lock()

    def digests(self) -> tuple[str, str]:
        """Return the digests of the catalog that was made last: of the models, and of what was learned; "" before."""
        found = self._catalog
        return (found.catalog_digest, found.learned_digest) if found is not None else ("", "")

    async def watch(self) -> None:
        """Make the catalog again whenever something has changed, until cancelled."""
        while True:
            await self.current()
            await asyncio.sleep(LOOK_S)

    async def current(self) -> NodeCatalog:
        """Return the catalog of what is known now."""
        async with self._making:
            made_of = self._sources()
            if self._catalog is None or not all(map(operator.is_, made_of, self._made_of)):
                self._catalog = await self._make()
                self._made_of = made_of
            return self._catalog

    def _sources(self) -> list[object]:
        """Return what the catalog depends on: objects that are replaced and not changed."""
        backend = self._backend
        kinds = [_kind(gpu) for gpu in backend.cards.gpus or ()]
        if kinds != self._kinds:
            self._kinds = kinds
        costs = backend.residency.load_times.costs
        return [backend.installed.catalog, backend.lessons.learned, costs, backend.world.version, self._kinds]

    async def _make(self) -> NodeCatalog:
        models = []
        for at, facts in enumerate(list(self._backend.installed.catalog.values())[:MOST_MODELS], 1):
            models.append(self._model(facts))
            if at % AT_ONCE == 0:
                await asyncio.sleep(0)
        return NodeCatalog.of(tuple(models))

    def _model(self, facts: ModelFacts) -> NodeModel:
        load_s = self._backend.residency.load_times.costs.load_s(facts.weights, facts.size_bytes)
        gpus = self._backend.cards.gpus or ()
        return NodeModel.of(facts, tuple(self._needs(facts, gpus)), round(min(load_s, 1e6), 1))

    def _needs(self, facts: ModelFacts, gpus: tuple[Gpu, ...]) -> Iterator[NodeNeed]:
        if facts.is_remote or not gpus:
            return
        rules = self._backend.rules()
        largest = max(gpus, key=lambda gpu: gpu.total_bytes)
        for num_ctx in _contexts(facts, rules.context.min_num_ctx, rules.context.max_num_ctx):
            need = need_of(facts, LoadOptions(num_ctx=num_ctx), rules.machine)
            split_bytes = least_of_split(need, gpus) if len(gpus) > 1 else None
            yield NodeNeed(num_ctx, need.need_bytes(largest), split_bytes)


def _contexts(facts: ModelFacts, least: int, most: int | None) -> list[int]:
    """Return the smallest and the largest context with which a model is loaded."""
    longest = facts.context_length or most or least
    return sorted({min(least, longest), min(most or longest, longest)})


def _kind(gpu: Gpu) -> tuple[object, ...]:
    return gpu.uuid, gpu.total_bytes, gpu.context_bytes
