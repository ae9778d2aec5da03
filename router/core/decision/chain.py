"""What can run: a variant (model and num_ctx), a chain of variants, and the automatic chain of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of

MOST_VARIANTS = 64
"""Of an automatic chain: a decision looks at each of them, and nobody has so many that differ."""

MOST_KIN = 500
"""Models of one family and series that are looked at for an automatic chain: anybody may give thousands one name."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One candidate of a chain: a model name, perhaps with a context of its own.

    `num_ctx` is in tokens; "max" = the largest that fits.
    """

    model: str
    num_ctx: int | Literal["max"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Variants in order, biggest first. `name` is what clients ask for.

    Compared and hashed by identity, so it can be a cache key: two chains may have one name.
    """

    name: str
    variants: tuple[Variant, ...]

    def installed(self, catalog: Mapping[str, ModelFacts]) -> tuple[str, ...]:
        """Return the models of its variants that are installed, in order; `catalog` is keyed by `names.key_of`."""
        return tuple(variant.model for variant in self.variants if key_of(variant.model) in catalog)

    def place_of(self, model: str) -> int | None:
        """Return the place of the variant that is this model, from 0; None if it is none of them."""
        return next((at for at, variant in enumerate(self.variants) if variant.model == model), None)


def auto_chain(
    asked: ModelFacts, installed: Iterable[ModelFacts], mode: Literal["auto", "quantizations"] = "auto"
) -> Chain:
    """Return the automatic chain of `asked`: the model itself, then its possible substitutes, biggest first.

    1. Smaller quantizations: same series, same flavour (instruct, vision, coder …), equal parameter count.
    2. Unless mode is "quantizations": members of the series with fewer parameters.

    Of several tags that share one weights blob the first by name is taken. A model that lacks a capability of `asked`
    is left out. An embedding model gets no substitute, because vectors of two models do not compare
    (docs/reliability.md, C10); with mode "quantizations" its own quantizations may follow. Of very many substitutes
    (`MOST_VARIANTS`) the biggest and the smallest are taken.
    """
    if mode == "auto" and "embedding" in asked.capabilities:
        return Chain(asked.name, (Variant(asked.name),))
    by_weights: dict[tuple[str, tuple[str, ...]], ModelFacts] = {}
    for facts in sorted(installed, key=lambda facts: facts.name):
        if (facts.weights, facts.parts) != (asked.weights, asked.parts) and _may_replace(asked, facts):
            by_weights.setdefault((facts.weights, facts.parts), facts)
    same = [facts for facts in by_weights.values() if _is_same_size(asked, facts)]
    smaller = [facts for facts in by_weights.values() if mode == "auto" and _is_smaller(asked, facts)]
    same.sort(key=lambda facts: (-facts.size_bytes, facts.name))
    smaller.sort(key=lambda facts: (-facts.parameter_count, -facts.size_bytes, facts.name))
    return Chain(asked.name, tuple(Variant(facts.name) for facts in (asked, *_few([*same, *smaller]))))


class KinOf:
    """The installed models by their kin (`ModelFacts.kin`), of which automatic chains are made.

    Thousands may be installed, and few of them are of one series. `catalog` is keyed by `names.key_of`.
    """

    def __init__(self, catalog: Mapping[str, ModelFacts]) -> None:
        self.catalog = catalog
        self._keys: defaultdict[str, list[str]] = defaultdict(list)
        for key, facts in catalog.items():
            self._keys[facts.kin].append(key)

    def keys(self, asked: ModelFacts) -> Sequence[str]:
        """Return the keys of the models of the family and the series of `asked`, at most `MOST_KIN`: itself, too."""
        return self._keys.get(asked.kin, ())[:MOST_KIN]

    def facts(self, asked: ModelFacts) -> list[ModelFacts]:
        """Return the facts of these."""
        return [self.catalog[key] for key in self.keys(asked)]


def _few(substitutes: Sequence[ModelFacts]) -> Sequence[ModelFacts]:
    """Return at most as many as a chain may have beside the first: the last ones are those that fit if nothing does."""
    half, rest = divmod(MOST_VARIANTS - 1, 2)
    if len(substitutes) < MOST_VARIANTS:
        return substitutes
    return [*substitutes[: half + rest], *substitutes[-half:]]


def _may_replace(asked: ModelFacts, other: ModelFacts) -> bool:
    if not asked.capabilities <= other.capabilities or not other.capabilities or other.is_remote:
        return False
    return asked.kin == other.kin


def _is_same_size(asked: ModelFacts, other: ModelFacts) -> bool:
    ours, theirs = asked.parameter_count, other.parameter_count
    return bool(ours) and abs(ours - theirs) <= 0.01 * ours and other.size_bytes < asked.size_bytes


def _is_smaller(asked: ModelFacts, other: ModelFacts) -> bool:
    return 0 < other.parameter_count < 0.99 * asked.parameter_count
