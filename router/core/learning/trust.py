"""For how long a lesson counts, and what all loads on a card have in common.

Nothing that was learned may keep a model out of an empty card for ever: a need beyond the formula counts for an hour if
one load showed it, for a day if several did. Then the load is tried again and shows it anew, or something better. A
need below the formula counts only until Ollama restarts, because it may have other settings now: then not until one
load has shown that it has the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from router.core.learning.observation import Observation
from router.core.units import MIB

ONCE_S, OFTEN_S = 3600.0, 86400.0
NOISE_BYTES = 48 * MIB  # between two loads under the same settings
SMALL_BYTES = 256 * MIB
"""A residual up to this may be the formula's own error: it counts for a day though it was seen once."""

MOST_CONSTANT_BYTES = 768 * MIB  # no driver context is larger: what exceeds it has another cause


def is_due(residual_bytes: int, support: Sequence[Observation], now_s: float | None) -> bool:
    """Return whether a need beyond the formula, shown by the loads `support`, is to be tried again."""
    if now_s is None or residual_bytes <= 0 or not support:
        return False
    lasts_s = OFTEN_S if len(support) > 1 or residual_bytes <= SMALL_BYTES else ONCE_S
    return now_s - max(one.at_s for one in support) >= lasts_s


def shows(one: Observation, residual_bytes: int) -> bool:
    """Return whether a load, whole or spilled, needed about as much beyond the formula, or more."""
    return one.residual_bytes >= residual_bytes - NOISE_BYTES - residual_bytes // 8


def is_confirmed(own: Sequence[Observation], everybodys: Iterable[Sequence[Observation]], since_s: float) -> bool:
    """Return whether a need below the formula counts: after Ollama's start a load of the model has shown it.

    Another model's will do that showed what its loads before had shown.
    """
    if not since_s or any(one.at_s >= since_s for one in own):
        return True
    return any(_agrees(seen, since_s) for seen in everybodys)


def _agrees(seen: Sequence[Observation], since_s: float) -> bool:
    after = [one for one in seen if one.at_s >= since_s and one.is_conclusive and not one.spilled]
    before = [one for one in seen if one.at_s < since_s and one.is_conclusive and not one.spilled]
    if not after or not before or before[-1].residual_bytes >= -NOISE_BYTES:
        return False
    return after[0].residual_bytes <= before[-1].residual_bytes + NOISE_BYTES


def card_constants(newest: Iterable[Observation]) -> Mapping[str, int]:
    """Return what every load takes on a card of each name beyond the formula, in bytes: a driver context, for one.

    From the newest load of each model, spilled ones included, if at least two models and most of them agree; only what
    is beyond noise, and never less than nothing.
    """
    by_name: dict[str, list[int]] = {}
    for one in newest:
        shown = one.shown_residual_bytes
        if shown is not None and len(one.gpu_names) == 1:
            by_name.setdefault(one.gpu_names[0], []).append(shown)
    found = ((name, _agreed(shown)) for name, shown in by_name.items())
    return {name: size for name, size in found if NOISE_BYTES < size <= MOST_CONSTANT_BYTES}


def _agreed(shown: list[int]) -> int:
    middle = int(median(shown))
    near = [one for one in shown if abs(one - middle) <= max(64 * MIB, middle // 5)]
    return max(near) if len(near) >= 2 and 2 * len(near) > len(shown) else 0
