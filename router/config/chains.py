"""Which chain a model name has: the chain of that name, else the most specific pattern, else the default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from router.config.sections import AutoChains, ChainSection, Defaults, NothingFits, Prefer, Upgrade
from router.config.values import WILDCARDS
from router.core.decision.chain import Variant
from router.core.ollama.names import ModelName, key_of

_MAX_CACHED = 4096


@dataclass(frozen=True, slots=True)
class ChainRule:
    """The configuration for one requested model, with the defaults filled in.

    `name` is the chain's name or pattern, "" if the defaults apply. `variants` is None for a chain that is derived from
    the installed models as `auto` says ("off": the requested model alone).
    """

    name: str
    variants: tuple[Variant, ...] | None
    auto: AutoChains
    nothing_fits: NothingFits
    upgrade: Upgrade
    prefer: Prefer
    preload: bool = False


class ChainRules:
    """The chain rules of one configuration. `rule_for` is cached per name, so that a request costs one look-up."""

    def __init__(self, chains: Mapping[str, ChainSection], defaults: Defaults) -> None:
        rules = {name: _rule(name, section, defaults) for name, section in chains.items()}
        self._by_key = {key_of(name): rule for name, rule in rules.items() if not WILDCARDS.search(name)}
        patterns = sorted((name for name in rules if WILDCARDS.search(name)), key=_specificity)
        self._patterns = tuple((_regex(name), rules[name]) for name in patterns)
        auto, rule = defaults.auto_chains, defaults.nothing_fits
        self._default = ChainRule("", None, auto, rule, defaults.upgrade, defaults.prefer)
        self._cache: dict[str, ChainRule] = {}

    @property
    def named(self) -> tuple[ChainRule, ...]:
        """The chains that have a name of their own and list their variants: clients see them as models."""
        return tuple(rule for rule in self._by_key.values() if rule.variants is not None)

    def rule_for(self, model: str) -> ChainRule:
        """Return the rule for `model` in any spelling. Raise BadRequest if it is not a model name."""
        rule = self._cache.get(model)
        if rule is None:
            rule = self._find(ModelName.parse(model))
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[model] = rule
        return rule

    def _find(self, name: ModelName) -> ChainRule:
        exact = self._by_key.get(name.key)
        if exact is not None:
            return exact
        spellings = (name.short.lower(), name.key, f"{name.namespace}/{name.model}:{name.tag}".lower())
        for pattern, rule in self._patterns:
            if any(pattern.fullmatch(spelling) for spelling in spellings):
                return rule
        return self._default


def _rule(name: str, section: ChainSection, defaults: Defaults) -> ChainRule:
    variants: tuple[Variant, ...] | None = None
    auto: Literal["auto", "quantizations"] = "auto"
    if isinstance(section.variants, str):
        auto = section.variants
    else:
        variants = tuple(Variant(entry.model, entry.num_ctx) for entry in section.variants)
    return ChainRule(
        name,
        variants,
        auto,
        section.nothing_fits or defaults.nothing_fits,
        section.upgrade or defaults.upgrade,
        section.prefer or defaults.prefer,
        section.preload,
    )


def _specificity(pattern: str) -> int:
    """Return a sort key: more literal characters come first. Sorting is stable, so the file's order decides a tie."""
    return -len(WILDCARDS.sub("", pattern))


def _regex(pattern: str) -> re.Pattern[str]:
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern.lower())
    return re.compile("".join(parts))
