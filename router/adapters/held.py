"""How much memory the facts of a model take: an estimate from the sizes of CPython's objects."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from router.core.ollama.model import ModelFacts, Tensor

_TENSOR_BYTES = 8 + sys.getsizeof(Tensor("", "", ())) + sys.getsizeof("")
_SHAPE_BYTES = sys.getsizeof(())
_SIDE_BYTES = 8 + sys.getsizeof(1 << 30)
_ENTRY_BYTES = 100
"""Of a mapping or a set, beside what it holds."""


def held_bytes(facts: ModelFacts) -> int:
    """Return about how many bytes `facts` takes."""
    texts = (facts.name, facts.digest, facts.family, facts.parameter_size, facts.quantization, facts.doubt)
    tensors = sum(_TENSOR_BYTES + len(one.name) for one in facts.tensors)
    shapes = sum(_SHAPE_BYTES + _SIDE_BYTES * len(shape) for shape in {one.shape for one in facts.tensors})
    kinds = sum(map(sys.getsizeof, {one.type for one in facts.tensors}))
    words = (*texts, facts.weights, *facts.parts, *facts.capabilities)
    return tensors + shapes + kinds + _held((facts.parameters, facts.info, facts.projector, words))


def _held(value: Any) -> int:
    """Return the bytes of a JSON value. Its depth is bounded by the decoder."""
    if isinstance(value, Mapping):
        return sys.getsizeof(value) + sum(_ENTRY_BYTES + _held(key) + _held(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return sys.getsizeof(value) + sum(map(_held, value))
    return sys.getsizeof(value)
