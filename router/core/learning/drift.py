"""Settings that the server does not show (KV type, slot count, a constant), inferred from residuals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, median

from router.core.learning.observation import Observation
from router.core.memory.weights import row_bytes
from router.core.units import MIB

_NOTABLE_BYTES = 256 * MIB
_NEARLY_BYTES = 48 * MIB
_KV_TYPES = ("f16", "q8_0", "q4_0")
_SLOTS = (1, 2, 3, 4, 8)
TRUST = {1: 1.0, 2: 0.75}
"""Weight of a model that a hypothesis explains by this many changed settings: two explain more by chance."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """One hypothesis that explains the residuals of `models` models: `factor` × the caches, or a constant per load.

    `constant_bytes` is added to each load. `of_models` is how many models were notably off. `misfit_bytes` is by how
    much the hypothesis fails to explain them, on average, `settings` how many settings it changes. `note` is the
    text for people.
    """

    models: int
    factor: float
    constant_bytes: int
    note: str
    of_models: int = 0
    misfit_bytes: int = 0
    settings: int = 1

    @property
    def is_settled(self) -> bool:
        """True if it explains every model whose load was off, and at least three: chance does not do that."""
        return self.models >= 3 and self.models == self.of_models

    def residual_bytes(self, cache_bytes: int) -> int:
        """Return what the hypothesis adds to a load whose caches take `cache_bytes` by the formula."""
        return int((self.factor - 1) * cache_bytes) + self.constant_bytes


def hidden_setting(newest: Iterable[Observation]) -> Hidden | None:
    """Return the hypothesis that explains the newest load of each model; None if the formula explains them well enough.

    The one that explains the most models wins, then the one that fits best; two changed settings must explain a third
    more models than one, and one is preferred to a constant that fits slightly better. If the caches are not known,
    only a constant can be inferred, and only from loads that were whole.
    """
    notable = [seen for seen in newest if abs(seen.shown_residual_bytes or 0) > _NOTABLE_BYTES]
    if not notable:
        return None
    whole = [seen for seen in notable if not seen.spilled]
    hypotheses = [one for one in (*_factors(notable), _constant(whole) if whole else None) if one is not None]
    best = min(hypotheses, key=lambda one: (-one.models * TRUST[one.settings], one.misfit_bytes), default=None)
    return None if best is None else replace(best, of_models=len(notable))


def _factors(notable: Sequence[Observation]) -> list[Hidden]:
    """Return hypotheses about KV type and slots, those that change the fewest settings first."""
    assumed = notable[0].kv_type, notable[0].num_parallel
    settings = sorted(product(_KV_TYPES, _SLOTS), key=lambda pair: (pair[0] != assumed[0]) + (pair[1] != assumed[1]))
    explained = ((kind, slots, [seen for seen in notable if _explains(seen, kind, slots)]) for kind, slots in settings)
    return [_factor(seen, kind, slots) for kind, slots, seen in explained if seen]


def _explains(seen: Observation, kind: str, slots: int) -> bool:
    if not seen.cache_bytes or (kind, slots) == (seen.kv_type, seen.num_parallel):
        return False
    residual = seen.shown_residual_bytes or 0
    expected = (_factor_of(seen, kind, slots) - 1) * seen.cache_bytes
    return abs(expected - residual) <= max(128 * MIB, 0.06 * abs(residual))


def _factor_of(seen: Observation, kind: str, slots: int) -> float:
    return slots / seen.num_parallel * row_bytes(kind, 256) / row_bytes(seen.kv_type, 256)


def _factor(explained: Sequence[Observation], kind: str, slots: int) -> Hidden:
    seen = explained[0]
    settings = []
    if kind != seen.kv_type:
        settings.append(f"OLLAMA_KV_CACHE_TYPE={kind}")
    if slots != seen.num_parallel:
        settings.append(f"OLLAMA_NUM_PARALLEL={slots}")
    factor = _factor_of(seen, kind, slots)
    note = f"{_models(len(explained))} {factor:.2g} × the computed cache: the server seems to run with "
    misfit = _mean(abs((factor - 1) * one.cache_bytes - (one.shown_residual_bytes or 0)) for one in explained)
    preferred = _NEARLY_BYTES if len(settings) == 1 else 0
    text = note + " and ".join(settings)
    return Hidden(len(explained), factor, 0, text, misfit_bytes=misfit - preferred, settings=len(settings))


def _constant(notable: Sequence[Observation]) -> Hidden | None:
    middle = int(median(seen.residual_bytes for seen in notable))
    near = [seen for seen in notable if abs(seen.residual_bytes - middle) <= max(128 * MIB, abs(middle) // 5)]
    if not near:
        return None
    direction = "more" if middle > 0 else "less"
    note = f"{_models(len(near))} {abs(middle) // MIB} MiB {direction} than computed, for no known reason"
    misfit = _mean(abs(seen.residual_bytes - middle) for seen in near)
    return Hidden(len(near), 1.0, middle, note, misfit_bytes=misfit, settings=2)


def _mean(sizes: Iterable[float]) -> int:
    return int(fmean(sizes))


def _models(count: int) -> str:
    return "1 model takes" if count == 1 else f"{count} models take"
