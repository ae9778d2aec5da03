"""Bytes of a vision tower on the GPU: its tensors and its largest image (docs/memory.md, "Projector")."""

from __future__ import annotations

from router.core.memory.weights import Weights
from router.core.ollama.model import ModelFacts
from router.core.units import MIB

# A header holds the vocabulary, a few megabytes; leaving it in keeps the figure an upper bound.
_UNKNOWN_FACTOR, _UNKNOWN_BYTES = 1.25, 64 * MIB


def projector_bytes(facts: ModelFacts, weights: Weights) -> int:
    """Return the bytes that the tower adds to the target of the first card; 0 for a text model.

    A tower inside the file is sized from its tensors, one in a blob of its own from what the download has beyond the
    text tensors. The largest image is sized from the tower's metadata, else as a quarter of the tower and 64 MiB.
    """
    tower = tower_bytes(facts, weights)
    if not tower:
        return 0
    image = worst_image_bytes(facts)
    return tower + image if image else int(tower * _UNKNOWN_FACTOR) + _UNKNOWN_BYTES


def tower_bytes(facts: ModelFacts, weights: Weights) -> int:
    """Return the bytes of the tower's tensors, or an upper bound if its blob's tensors are not listed."""
    if weights.tower_bytes:
        return weights.tower_bytes
    if not facts.projector or not facts.tensors:
        return 0
    return max(0, facts.size_bytes - weights.file_bytes)


def worst_image_bytes(facts: ModelFacts) -> int:
    """Return the compute bytes of a SigLIP tower's largest image: N·4·(n_ff + 5·n_embd) for N patches; 0 if unknown."""
    found = _vision(facts)
    image, patch = found.get("image_size", 0), found.get("patch_size", 0)
    width, embedding = found.get("feed_forward_length", 0), found.get("embedding_length", 0)
    if not (image and patch and width and embedding):
        return 0
    return (image // patch) ** 2 * 4 * (width + 5 * embedding)


def _vision(facts: ModelFacts) -> dict[str, int]:
    """Return the numbers of the tower's metadata, by the last part of the key (clip.vision.image_size → image_size)."""
    return {
        key.rpartition("vision.")[2]: int(value)
        for source in (facts.info, facts.projector)
        for key, value in source.items()
        if "vision." in key and isinstance(value, int | float)
    }
