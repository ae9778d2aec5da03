"""The models of this node for its fronts, with what they need on its cards: sized beside requests, a few at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping

from router.core.decision.need import need_of
from router.core.decision.placing import least_of_split
from router.core.nodes.catalog import MOST_MODELS, CatalogInMaking, NodeCatalog, NodeModel, NodeNeed
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.errors import Busy
from router.routing.fleet.place import Place

LOOK_S = 0.25
"""How often it is checked whether models, cards, or what was learned have changed."""

FIRST_S = 0.02
"""The same until its models are known: after a start fronts wait for them."""

AT_ONCE = 256
"""Known models that are taken over between two pauses."""

REST = 20
"""After all models were sized by what was learned, nothing is sized again for so many times as long."""


class NodeModels:
    """Keeps the catalog of the node that owns the Ollama of `place`."""

    def __init__(self, place: Place) -> None:
        self._backend = place.backend
        self._catalog: NodeCatalog | None = None
        self._written: tuple[NodeCatalog | None, bytes] = None, b""
        self._made_of: tuple[object, object] = None, None
        self._basis: list[object] = []  # what the models were sized by
        self._sized: dict[ModelFacts, NodeModel] = {}
        self._size_again_s = -math.inf
        self._now = place.backend.now

    def digests(self) -> tuple[str, str]:
        """Return the digests of the catalog that was made last: of the models, and of what was learned; "" before."""
        found = self._catalog
        return (found.catalog_digest, found.learned_digest) if found is not None else ("", "")

    async def watch(self) -> None:
        """Make the catalog again whenever something has changed, until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_S if self._catalog is not None else FIRST_S)

    def json(self) -> bytes:
        """Return the catalog that was made last, as JSON. Raises Busy until its Ollama has listed its models once."""
        catalog = self._catalog
        if catalog is None:
            raise Busy("the models of this node are not known yet")
        if catalog is not self._written[0]:
            self._written = catalog, catalog.to_json()
        return self._written[1]

    async def _look(self) -> None:
        """Make the catalog if another one has to be; all models are sized again only if enough time has passed."""
        if not self._backend.installed.is_known:
            return
        began_s, basis = self._now(), self._basis_now()
        is_other = basis != self._basis and began_s >= self._size_again_s
        if is_other:
            self._basis, self._sized = basis, {}
        made_of = self._backend.installed.catalog, self._basis
        if made_of[0] is self._made_of[0] and made_of[1] is self._made_of[1]:
            return
        self._catalog, self._made_of = await self._make(made_of[0]), made_of
        if is_other:
            now_s = self._now()
            self._size_again_s = now_s + REST * (now_s - began_s)

    def _basis_now(self) -> list[object]:
        """Return what models are sized by; objects among it are replaced when they change, and equal to no others."""
        backend = self._backend
        kinds = [_kind(gpu) for gpu in backend.cards.gpus or ()]
        costs = backend.residency.load_times.costs
        return [backend.lessons.learned, costs, backend.world.version, kinds]

    async def _make(self, installed: Mapping[str, ModelFacts]) -> NodeCatalog:
        making, before = CatalogInMaking(), self._sized
        self._sized = {}
        by_name = sorted(installed.values(), key=lambda facts: facts.name)[:MOST_MODELS]
        for at, facts in enumerate(by_name, 1):
            model = before.get(facts)
            if model is None or at % AT_ONCE == 0:  # what was never sized takes some milliseconds
                await asyncio.sleep(0)
            model = model or self._model(facts)
            self._sized[facts] = model
            making.add(model)
        return making.whole()

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
