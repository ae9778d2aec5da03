"""How much of each card the server keeps free, by its version (docs/memory.md, "Margins")."""

from __future__ import annotations

import re

from router.core.memory.projector import tower_bytes
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts
from router.core.units import MIB

FIT_TARGET_BYTES = 1024 * MIB  # llama.cpp's --fit-target, since Ollama 0.30
FIT_SINCE = (0, 30, 0)  # llama.cpp's fit decides the split
OLD_OVERHEAD_BYTES = 457 * MIB  # Ollama's own constant before 0.30
# From this version on Ollama adds the projector to the target, although llama-server does so too (ollama issue 17099).
_DOUBLE_PROJECTOR = (0, 31, 2)


def fit_target_bytes(facts: ModelFacts, version: str, *, base_bytes: int = FIT_TARGET_BYTES) -> int:
    """Return the bytes that a load of `facts` must leave free on every card under Ollama `version`.

    `base_bytes` is LLAMA_ARG_FIT_TARGET if it was set; then nothing is added. A version that cannot be parsed, and
    0.0.0 (a development build), count as the newest.
    """
    known = version_of(version)
    if known < FIT_SINCE:
        return OLD_OVERHEAD_BYTES
    if base_bytes != FIT_TARGET_BYTES or known < _DOUBLE_PROJECTOR:
        return base_bytes
    return base_bytes + tower_bytes(facts, shape_of(facts).weights)


def version_of(text: str) -> tuple[int, ...]:
    """Parse ``0.31.2-rc1`` → (0, 31, 2); a version that cannot be parsed, and 0.0.0, is newer than every other."""
    match = re.match(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})", text)
    numbers = tuple(int(part) for part in match.groups()) if match else (0, 0, 0)
    return numbers if any(numbers) else (999, 0, 0)
