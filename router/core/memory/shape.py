"""The shape of a model: everything about its memory that does not depend on the options. Computed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from router.core.memory.architectures import Architecture, architecture
from router.core.memory.caches import LayerCache, layer_caches, window
from router.core.memory.graph import GraphWidths, graph_widths
from router.core.memory.weights import Weights
from router.core.ollama.model import ModelFacts

Exactness = Literal["exact", "general", "coarse"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything about a model's memory that does not depend on the options.

    `layers` is the cache of each block; `kinds` the KV caches that occur, with their numbers; `mask_kinds` which of
    full (False) and sliding (True) occur. `widest_v` is the widest V cell in elements. `window` is in tokens.
    """

    arch: Architecture
    weights: Weights
    layers: tuple[LayerCache, ...]
    kinds: tuple[tuple[LayerCache, int], ...]
    mask_kinds: tuple[bool, ...]
    state_bytes: int
    layer_state_bytes: int
    widest_v: int
    window: int
    graph: GraphWidths
    exactness: Exactness
    notes: tuple[str, ...]


@lru_cache(maxsize=1024)
def shape_of(facts: ModelFacts) -> Shape:
    """Return the shape of `facts`; cached per facts object, because a model's metadata never changes."""
    arch = architecture(facts.arch)
    layers = layer_caches(facts, arch)
    blocks = len(layers) - int(facts.value("nextn_predict_layers", 0))
    weights = Weights.of(facts.tensors, blocks=max(0, blocks), copies_embedding=arch.copies_embedding)
    kinds = Counter(
        LayerCache(layer.k_width, layer.v_width, layer.is_sliding) for layer in layers if layer.k_width or layer.v_width
    )
    return Shape(
        arch=arch,
        weights=weights,
        layers=layers,
        kinds=tuple(kinds.items()),
        mask_kinds=_mask_kinds(arch, layers),
        state_bytes=sum(layer.state_bytes for layer in layers),
        layer_state_bytes=max((layer.state_bytes for layer in layers), default=0),
        widest_v=max((layer.v_width for layer in layers), default=0),
        window=window(facts, arch),
        graph=graph_widths(facts, arch),
        exactness=_exactness(facts, arch),
        notes=_notes(facts, arch, weights),
    )


def _mask_kinds(arch: Architecture, layers: tuple[LayerCache, ...]) -> tuple[bool, ...]:
    """Return one mask per kind of attention among the layers with a cache.

    Without a cache every layer attends; then a model that slides has both.
    """
    slides = any(layer.is_sliding for layer in layers)
    if not arch.has_cache:
        return (False, True) if slides else (False,)
    cached = [layer for layer in layers if layer.k_width]
    return tuple(kind for kind in (False, True) if any(layer.is_sliding is kind for layer in cached))


def _exactness(facts: ModelFacts, arch: Architecture) -> Exactness:
    if not facts.tensors or not facts.value("block_count") or not facts.value("embedding_length"):
        return "coarse"
    return "general" if arch.source == "none" or not arch.is_calibrated else "exact"


def _notes(facts: ModelFacts, arch: Architecture, weights: Weights) -> tuple[str, ...]:
    """Return why the figures are less than exact, as text for `explain`."""
    notes = []
    if facts.doubt:
        notes.append(f"its metadata is not used, because {facts.doubt}")
    if not facts.arch:
        notes.append("no metadata: sizes are derived from the file size alone, rounded up")
    elif arch.source == "none":
        notes.append(f"architecture {facts.arch} is not in the table: every layer counted with the full context")
    elif not arch.is_calibrated:
        notes.append(f"architecture {facts.arch} keeps caches that are not modelled: the first load is measured")
    if facts.arch and not facts.tensors:
        notes.append("the server listed no tensors: weights are counted as the whole download")
    if facts.has_draft:
        notes.append("a draft model: its cache and graph are counted as large as the model's own")
    if weights.unknown_types:
        notes.append(f"unknown tensor types counted as F32: {', '.join(sorted(weights.unknown_types))}")
    return tuple(notes)
