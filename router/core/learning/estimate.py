"""What the loads of one model show of the next one: the rules 1, 2, 4 and 5 of `residuals.py`."""

from __future__ import annotations

from functools import lru_cache

from router.core.learning.observation import Observation
from router.core.learning.trust import NOISE_BYTES
from router.core.memory.options import MemoryOptions
from router.core.units import MIB

LEAST_SAFETY_BYTES = 64 * MIB
"""Growth after the load is 12…100 MiB (docs/memory.md, "Margins")."""

_MOST_SPREAD_BYTES = 64 * MIB

Estimate = tuple[int, int | None, str]
"""The bytes to add to the formula, the safety that then suffices (None = the footprint's own), and the source."""


@lru_cache(maxsize=512)
def estimate(
    seen: tuple[Observation, ...], options: MemoryOptions, gpu_names: tuple[str, ...], version: str
) -> Estimate:
    """Return the estimate by `seen`, the loads of one weights blob, on cards of these names, for this Ollama."""
    trusted = [one for one in seen if one.ollama_version == version]
    if not trusted:
        residual = _at_most(seen[-1], options)
        return max(0, residual), None, f"learned on Ollama {seen[-1].ollama_version}, which may differ"
    here = [one for one in trusted if one.gpu_names == gpu_names]
    recent = _since_last_change(here or trusted)
    same = [one for one in recent if one.matches(options)]
    residuals = [_at_most(one, options) for one in same or recent]
    newest, residual = recent[0], max(residuals) if same else min(residuals)
    if residual < 0 and not here:
        return 0, None, "learned on other cards, which may differ"
    spread = min(max(residuals) - min(residuals), _MOST_SPREAD_BYTES)
    stretch = 0 if same else min(abs(residual), _MOST_SPREAD_BYTES)
    if not any(_has_graph(one, options) for one in recent):  # the formula's error with this graph was not seen
        stretch += _MOST_SPREAD_BYTES
    elsewhere = _MOST_SPREAD_BYTES if newest.spilled or newest.gpu_names != gpu_names else 0
    safety = LEAST_SAFETY_BYTES + spread + stretch + elsewhere
    return residual, safety, _source(residuals)


def _source(residuals: list[int]) -> str:
    return f"learned from {len(residuals)} load{'s' if len(residuals) > 1 else ''}"


def _has_graph(one: Observation, options: MemoryOptions) -> bool:
    """Return whether a load had the graph and the cache type of these options, at whatever context."""
    asked = (options.num_batch, options.num_parallel, options.kv_type)
    return (one.num_batch, one.num_parallel, one.kv_type) == asked


def _since_last_change(seen: list[Observation]) -> list[Observation]:
    """Return the loads that agree with the newest, newest first: older ones were made under other settings."""
    newest = seen[-1]
    recent = [newest]
    for one in reversed(seen[:-1]):
        least, most = sorted((one.residual_bytes, one.residual_bytes * newest.tokens // max(1, one.tokens)))
        noise = NOISE_BYTES + newest.predicted_bytes // 300
        if not least - noise <= newest.residual_bytes <= most + noise:
            break
        recent.append(one)
    return recent


def _at_most(one: Observation, options: MemoryOptions) -> int:
    """Return the upper bound of case 2: the larger of "constant" and "in proportion to the context"."""
    asked_tokens = options.num_ctx * options.num_parallel
    return max(one.residual_bytes, one.residual_bytes * asked_tokens // max(1, one.tokens))
