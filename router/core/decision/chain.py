"""What can run: a variant (model and num_ctx), a chain of variants, and the automatic chain of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of

_QUANTIZATION = re.compile(
    r"(?<![a-z0-9])(?:ud[-_])?(?:[it]?q\d\w*|(?:mx|nv)fp4\w*|b?fp?(?:16|32)|fp8|int\d)\b", re.ASCII
)
_VERSION = re.compile(r"[-_.]?v?\d+(?:\.\d+)*(?![a-z0-9])|\d+(?:\.\d+)*")
_SIZE = re.compile(r"(?:\d+x)?[ae]?\d+[bme]?|v\d+|\d+k")
_PLAIN = frozenset({"latest", "instruct", "it", "chat", "qat"})


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
    (docs/reliability.md, C10); with mode "quantizations" its own quantizations may follow.
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
    return Chain(asked.name, tuple(Variant(facts.name) for facts in (asked, *same, *smaller)))


@lru_cache(maxsize=8192)
def series(name: str) -> tuple[str, frozenset[str]]:
    """Return the series of a model name and its flavour: ``llama3.1:8b-instruct-q8_0`` → ("llama", {}).

    The series is namespace and model without version numbers. The flavour is what the tag names besides size and
    quantization; ``instruct``, ``it`` and ``chat`` are left out, because a plain tag means them in Ollama's library.
    """
    path, _, last = name.rpartition("/")
    model, _, tag = last.partition(":")
    words = re.split(r"[-_.]+", re.sub(_QUANTIZATION, "", tag.lower()))
    flavour = frozenset(word for word in words if word and not _SIZE.fullmatch(word) and word not in _PLAIN)
    return f"{path}/{_VERSION.sub('', model.lower())}", flavour


def is_kin(asked: ModelFacts, other: ModelFacts) -> bool:
    """Return whether `other` is of the family and the series of `asked`: it may be in its automatic chain."""
    return asked.family == other.family and series(asked.name) == series(other.name)


def _may_replace(asked: ModelFacts, other: ModelFacts) -> bool:
    if not asked.capabilities <= other.capabilities or not other.capabilities or other.is_remote:
        return False
    return is_kin(asked, other)


def _is_same_size(asked: ModelFacts, other: ModelFacts) -> bool:
    ours, theirs = asked.parameter_count, other.parameter_count
    return bool(ours) and abs(ours - theirs) <= 0.01 * ours and other.size_bytes < asked.size_bytes


def _is_smaller(asked: ModelFacts, other: ModelFacts) -> bool:
    return 0 < other.parameter_count < 0.99 * asked.parameter_count
