"""Upper bounds for models about which too little is known: no tensors, or no metadata at all. Never optimistic."""

from __future__ import annotations

from router.core.memory.options import MemoryOptions
from router.core.ollama.model import ModelFacts

_BITS_AT_LEAST = 2.0
_LAYER_SHAPE = 128 / 12  # a decoder has about 12·E² parameters per layer and E/128 layers


def kv_bytes(facts: ModelFacts, options: MemoryOptions) -> int:
    """Return the KV cache of a model without metadata: full attention on every layer of a decoder of that size."""
    parameters = facts.parameter_count or facts.size_bytes * 8 / _BITS_AT_LEAST
    embedding = (parameters * _LAYER_SHAPE) ** (1 / 3)
    elements_per_token = 2 * parameters / (12 * max(1.0, embedding))
    return int(1.25 * elements_per_token * 2 * options.cells * options.num_parallel)


def compute_bytes(facts: ModelFacts, options: MemoryOptions) -> int:
    """Return the compute buffer of a model without metadata: wide feed-forward, logits of the vocabulary, full mask."""
    parameters = facts.parameter_count or facts.size_bytes * 8 / _BITS_AT_LEAST
    embedding = (parameters * _LAYER_SHAPE) ** (1 / 3)
    return int(options.ubatch * 4 * 24 * embedding + options.cells * options.ubatch * 2)
