"""Entries of a chain that are bigger than one before them: they fit only if that one fits too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

_PARAMETERS = re.compile(r"(?<![a-z0-9.])(?:(\d{1,3})x)?(\d{1,5}(?:\.\d{1,3})?)([bm])(?![a-z0-9])", re.ASCII)
_BITS = re.compile(r"(?<![a-z0-9])[it]?q(\d)(?!\d)|(?<![a-z0-9])(b?fp?(?:16|32)|fp8|mxfp4|nvfp4)", re.ASCII)
_BITS_OF = {"fp8": 8, "mxfp4": 4, "nvfp4": 4, "f16": 16, "fp16": 16, "bf16": 16, "f32": 32, "fp32": 32}
LIBRARY_BITS = 4
"""What a tag of Ollama's library has that names none, in most cases."""


def size_by_name(model: str) -> float | None:
    """Return what the name says about the size, in bits; None if it does not say how many parameters there are."""
    name, _, tag = model.lower().rpartition("/")[2].partition(":")
    found = _PARAMETERS.search(tag) or _PARAMETERS.search(name)
    if found is None:
        return None
    count = float(found[2]) * int(found[1] or 1) * (1e9 if found[3] == "b" else 1e6)
    bits = _BITS.search(tag) or _BITS.search(name)
    return count * (LIBRARY_BITS if bits is None else int(bits[1]) if bits[1] else _BITS_OF.get(bits[2], 16))


def bigger_entries(models: Sequence[str], size_of: Callable[[str], float | None]) -> Iterator[tuple[int, int]]:
    """Yield (index, index of the smallest entry before it) of each entry that is bigger than one before it."""
    smallest: tuple[float, int] | None = None
    for index, model in enumerate(models):
        size = size_of(model)
        if size is None:
            continue
        if smallest is not None and size > smallest[0]:
            yield index, smallest[1]
        else:
            smallest = size, index
