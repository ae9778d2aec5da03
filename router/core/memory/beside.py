"""What a runner loads beside the model itself: adapters, a draft model, blocks for multi-token prediction.

The server lists no tensors of adapters and draft models; they are what the download has beyond the model's own. A draft
model keeps a cache of the same context. Its shape is unknown, so cache and graph count as large as the model's own: a
draft is smaller.
"""

from __future__ import annotations

from typing import NamedTuple

from router.core.memory.options import MemoryOptions
from router.core.memory.shape import Shape
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import has_draft


class Beside(NamedTuple):
    """Bytes on the GPU beside those of the model."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0


NOTHING = Beside()


def beside(facts: ModelFacts, shape: Shape, options: MemoryOptions, kv_bytes: int, compute_bytes: int) -> Beside:
    """Return what is loaded beside the model, whose own cache and graph take `kv_bytes` and `compute_bytes`.

    A model without listed tensors is sized by its whole download, which includes the weights of these.
    """
    drafts = has_draft(facts) if options.has_draft is None else options.has_draft
    nextn = shape.weights.nextn_bytes if drafts and not facts.has_draft else 0
    is_drafting = drafts and (facts.has_draft or nextn > 0)
    if not (facts.has_adapters or is_drafting):
        return NOTHING
    weights = nextn
    if facts.tensors and not facts.projector and (facts.has_adapters or facts.has_draft):
        weights += max(0, facts.size_bytes - shape.weights.file_bytes)  # with a projector it counts as part of that
    if not is_drafting:
        return Beside(weights)
    own = kv_bytes if facts.has_draft else kv_bytes // max(1, len(shape.layers))
    return Beside(weights, own, compute_bytes)
