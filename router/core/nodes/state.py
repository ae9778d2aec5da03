"""What a front knows of one node: its newest view, its models, and when the view came. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from router.core.nodes.catalog import NodeCatalog, NodeModel, NodeNeed
from router.core.nodes.view import NodeLoading, NodeResident, NodeView
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import is_name, key_of

LOADS_S, OUT_S = 3.0, 10.0
"""A view that is older counts only for what is loaded; one that is older still not at all."""

OLLAMA_SILENT = "its Ollama does not answer"

MOST_INTERNED, MOST_NEEDS = 65536, 1024
"""Facts of which one object is kept for all nodes; needs that are kept for the models of each."""


class Interned:
    """Equal facts as one object, whichever nodes tell them: chains are remembered by the objects."""

    def __init__(self) -> None:
        self._known: dict[NodeModel, ModelFacts] = {}

    def facts(self, model: NodeModel) -> ModelFacts:
        """Return the facts of a model, the same object for every node that has it."""
        bare = msgspec.structs.replace(model, needs=(), load_s=None)
        found = self._known.get(bare)
        if found is None:
            if len(self._known) >= MOST_INTERNED:
                self._known.clear()
            found = self._known[bare] = model.facts()
        return found


class Models:
    """The models of a node by the keys of their names (`names.key_of`)."""

    __slots__ = ("_by_key", "_needs", "catalog_digest", "facts", "learned_digest")

    def __init__(self, catalog: NodeCatalog, interned: Interned | None = None) -> None:
        self.catalog_digest, self.learned_digest = catalog.catalog_digest, catalog.learned_digest
        facts_of = (interned or Interned()).facts
        self._by_key = {key_of(model.name): model for model in catalog.models if is_name(model.name)}
        self._needs: dict[tuple[str, int], NodeNeed | None] = {}
        self.facts: dict[str, ModelFacts] = {key: facts_of(model) for key, model in self._by_key.items()}

    def get(self, key: str) -> NodeModel | None:
        """Return the model with this key, None if the node does not have it."""
        return self._by_key.get(key)

    def need(self, key: str, num_ctx: int) -> NodeNeed | None:
        """Return what the model with this key needs with a context; None if that is not known."""
        known = self._needs
        if (key, num_ctx) not in known:
            if len(known) >= MOST_NEEDS:
                known.clear()
            model = self._by_key.get(key)
            known[key, num_ctx] = model.need(num_ctx) if model is not None else None
        return known[key, num_ctx]

    def __len__(self) -> int:
        return len(self._by_key)


NO_MODELS = Models(NodeCatalog(catalog_digest="", learned_digest=""))


class NodeCard(NamedTuple):
    """One card: its memory, what is free, and what models hold that are not in use, and that are."""

    total_bytes: int
    free_bytes: int
    idle_bytes: int
    busy_bytes: int

    @staticmethod
    def of(view: NodeView, at: int) -> NodeCard:
        """Return the card at this place of a view."""
        gpu, held = view.gpus[at], [0, 0]
        for one in view.residents:
            if at < len(one.held_bytes):
                held[bool(one.in_flight or one.waiting)] += one.held_bytes[at]
        return NodeCard(gpu.total_bytes, gpu.free_bytes, *held)


@dataclass(frozen=True, slots=True, eq=False)
class NodeState:
    """One node. `at_s` is when its view came, by the front's clock; `name` is what clients see."""

    name: str
    view: NodeView
    models: Models = NO_MODELS
    at_s: float = 0.0
    residents: Mapping[str, NodeResident] = field(default_factory=dict)
    loading: Mapping[str, NodeLoading] = field(default_factory=dict)
    busy: int = 0
    """How many requests are at work or wait there."""

    cards: tuple[NodeCard, ...] = ()

    @staticmethod
    def of(name: str, view: NodeView, models: Models = NO_MODELS, at_s: float = 0.0) -> NodeState:
        """Return the state that a view describes."""
        residents = {one.weights: one for one in view.residents}
        loading = {one.weights: one for one in view.loading}
        busy = sum([one.in_flight + one.waiting for one in view.residents])
        cards = tuple(NodeCard.of(view, at) for at in range(len(view.gpus)))
        return NodeState(name, view, models, at_s, residents, loading, busy, cards)

    @property
    def is_usable(self) -> bool:
        """True if requests may go there."""
        return self.view.is_up and not self.view.draining

    @property
    def why_out(self) -> str:
        """Why no request goes there, as far as the node itself says so; "" if nothing speaks against it."""
        if self.view.draining:
            return "it is draining"
        return "" if self.view.is_up else OLLAMA_SILENT
