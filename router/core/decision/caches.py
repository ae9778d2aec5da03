"""What is worked out once for a model and kept. The caches hold its facts, so they are emptied when models are gone."""

from __future__ import annotations

from router.core.decision.need import need_of
from router.core.memory.footprint import known_footprint
from router.core.memory.placement import layer_sums
from router.core.memory.shape import shape_of
from router.core.ollama.bookkeeping import predicted_bytes


def forget_models() -> None:
    """Forget what was worked out for all models; it is worked out again for those that are asked for."""
    for cache in (need_of, layer_sums, known_footprint, shape_of, predicted_bytes):
        cache.cache_clear()
