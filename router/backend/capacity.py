"""What the cards can hold where no probe tells it: bounds that `/api/ps` has shown (`core/decision/unprobed.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from router.adapters.ollama import PsRow
from router.backend.epoch import Epoch

CEILING_S = 600.0
"""For this long a capacity that a spill or an eviction by Ollama revealed is used."""


class Capacity:
    """Two bounds in bytes: `proven_bytes` was whole in VRAM together; `ceiling_bytes()` was too much."""

    def __init__(self, epoch: Epoch) -> None:
        self.proven_bytes = 0
        self._ceiling: tuple[float, int] | None = None  # (valid until, bytes)
        self._epoch = epoch
        self._now = asyncio.get_running_loop().time

    def note_together(self, rows: Iterable[PsRow]) -> None:
        """Record that all these loaded models are whole in VRAM together, if they are."""
        rows = tuple(rows)
        if all(row.size_vram_bytes >= row.size_bytes for row in rows):
            self.proven_bytes = max(self.proven_bytes, sum(row.size_vram_bytes for row in rows))

    def note_ceiling(self, bytes_: int) -> None:
        """Record the capacity that a spill or an eviction by Ollama revealed: less than `bytes_`."""
        self._ceiling = (self._now() + CEILING_S, bytes_)
        self.proven_bytes = min(self.proven_bytes, bytes_)
        self._epoch.advance()

    def ceiling_bytes(self) -> int | None:
        """Return the capacity in bytes recorded by `note_ceiling`, None if there is none or it has expired."""
        return self._ceiling[1] if self._ceiling is not None and self._now() < self._ceiling[0] else None

    def forget(self) -> None:
        """Forget both bounds."""
        self._ceiling, self.proven_bytes = None, 0
        self._epoch.advance()
