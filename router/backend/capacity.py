"""What the cards can hold while no probe tells it: bounds that `/api/ps` and the last reading have shown.

`core/decision/unprobed.py` plans by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

from router.adapters.ollama import PsRow
from router.backend.epoch import Epoch
from router.core.ollama.runner import Gpu

CEILING_S = 600.0
"""For this long a capacity that a spill or an eviction by Ollama revealed is used."""


class Capacity:
    """Two bounds in bytes: `proven_bytes` was whole in VRAM together; `ceiling_bytes()` or more is too much."""

    def __init__(self, epoch: Epoch) -> None:
        self.proven_bytes = 0
        self._ceiling: tuple[float, int] | None = None  # (valid until, bytes)
        self._total_bytes: int | None = None
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

    def note_cards(self, gpus: Collection[Gpu]) -> None:
        """Record the cards that the probe shows: what they have in all is known also while it does not answer."""
        is_known = bool(gpus) and not any(gpu.is_optional for gpu in gpus)
        self._total_bytes = sum(gpu.total_bytes for gpu in gpus) if is_known else None

    def ceiling_bytes(self) -> int | None:
        """Return the least that is known to be too much, None if nothing is.

        What `note_ceiling` has recorded expires; what the cards had in all when they were read last does not.
        """
        learned = self._ceiling[1] if self._ceiling is not None and self._now() < self._ceiling[0] else None
        return min((bound for bound in (learned, self._total_bytes) if bound is not None), default=None)

    def forget(self) -> None:
        """Forget the bounds."""
        self._ceiling, self._total_bytes, self.proven_bytes = None, None, 0
        self._epoch.advance()
