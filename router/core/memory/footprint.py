"""Bytes a variant needs on the GPU: weights, KV cache, recurrent state, compute buffer, projector (docs/memory.md).

Everything follows from the answer of `/api/show`. What does not depend on the options is computed once per model
(`shape.shape_of`), so that a decision over many variants takes microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from router.core.memory import coarse
from router.core.memory.beside import beside
from router.core.memory.caches import LayerCache
from router.core.memory.compute import compute_bytes
from router.core.memory.options import ComputeBackend as ComputeBackend
from router.core.memory.options import MemoryOptions as MemoryOptions
from router.core.memory.projector import projector_bytes
from router.core.memory.shape import Exactness, Shape, shape_of
from router.core.ollama.model import ModelFacts
from router.core.units import MIB

# Safety: least bytes and least share of the need, by how well the architecture is known (docs/memory.md, "Margins").
_SAFETY = {"plans": (128 * MIB, 0.01), "code": (160 * MIB, 0.0125), "none": (512 * MIB, 0.08)}


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one device that holds every layer. `safety_bytes` grows with what the formula does not know.

    `exactness`: "exact" = architecture in the table, tensors known; "general" = general rules only; "coarse" = no
    tensors or no metadata (never optimistic). `notes` gives the reasons, for `explain`.
    """

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    projector_bytes: int
    safety_bytes: int
    exactness: Exactness
    notes: tuple[str, ...] = ()

    @property
    def need_bytes(self) -> int:
        """What llama.cpp's fit projects: everything except the safety, the driver context and the fit target."""
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes + self.projector_bytes


def footprint(
    facts: ModelFacts, options: MemoryOptions, *, backend: ComputeBackend = "cuda", copies: int = 1
) -> Footprint:
    """Return the footprint of `facts` run with `options` on one device; `copies` = 4 in a pipeline over several.

    Never raise. What the metadata does not state is counted at its largest; `exactness` and `notes` report it.
    """
    return known_footprint(facts, options, backend, copies)


@lru_cache(maxsize=8192)
def known_footprint(facts: ModelFacts, options: MemoryOptions, backend: ComputeBackend, copies: int) -> Footprint:
    """Return the same, cached: facts and options are values, and decisions ask for the same ones again and again."""
    shape = shape_of(facts)
    weights = shape.weights.device_bytes if facts.tensors else facts.size_bytes
    if shape.layers:
        kv = sum(layer_kv_bytes(shape, layer, options) * count for layer, count in shape.kinds)
        compute = compute_bytes(
            shape, options, is_embedding=is_embedding(facts, options), backend=backend, copies=copies
        )
    else:
        kv, compute = coarse.kv_bytes(facts, options), coarse.compute_bytes(facts, options) * copies
    more = beside(facts, shape, options, kv, compute)
    weights, kv, compute = weights + more.weights_bytes, kv + more.kv_bytes, compute + more.compute_bytes
    state = shape.state_bytes * options.num_parallel
    projector = projector_bytes(facts, shape.weights) if options.has_projector else 0
    need = weights + kv + state + compute + projector
    safety = safety_bytes_of(facts, need)
    return Footprint(weights, kv, state, compute, projector, safety, shape.exactness, shape.notes)


def layer_kv_bytes(shape: Shape, layer: LayerCache, options: MemoryOptions) -> int:
    """Return the bytes of the KV cache of one layer, all slots.

    Without flash attention V is as wide on every layer as on the widest.
    """
    if not layer.k_width:
        return 0
    wide = layer
    if not options.flash_attention and layer.v_width:
        wide = LayerCache(layer.k_width, shape.widest_v)
    cells = options.sliding_cells(shape.window) if layer.is_sliding else options.cells
    return int(wide.cell_bytes(options.kv_type) * cells * options.num_parallel)


def is_embedding(facts: ModelFacts, options: MemoryOptions) -> bool:
    """Return whether Ollama starts the runner for embedding: the model cannot complete (llm/llama_server.go)."""
    if options.is_embedding is not None:
        return options.is_embedding
    return "embedding" in facts.capabilities and "completion" not in facts.capabilities


def safety_bytes_of(facts: ModelFacts, need_bytes: int) -> int:
    """Return the bytes to keep free beside `need_bytes` on a card, by how well the model's architecture is known."""
    least, share = least_safety_of(facts)
    return max(least, int(share * need_bytes))


def least_safety_of(facts: ModelFacts) -> tuple[int, float]:
    """Return the least bytes to keep free beside what a card holds of the model, and the least share of that."""
    shape = shape_of(facts)
    return _SAFETY["none" if shape.exactness == "general" else shape.arch.source]
