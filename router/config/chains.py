"""Which chain a model name has: the chain of that name, else the most specific pattern, else the default."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from router.config.chain_sections import AutoChains, ChainSection
from router.config.sections import Defaults
from router.config.values import WILDCARDS
from router.core.decision.chain import Variant
from router.core.decision.chain_choices import Announce, NothingFits, Prefer, Upgrade
from router.core.ollama.model import ModelFacts
from router.core.ollama.name_patterns import regex_of
from router.core.ollama.names import ModelName, key_of
from router.core.teams.rights import Permit

_MAX_CACHED, _MAX_CACHED_OF_TEAM = 4096, 64


@dataclass(frozen=True, slots=True)
class ChainRule:
    """The configuration for one requested model, with the defaults filled in.

    `name` is the chain's name or pattern, "" if the defaults apply. `variants` is None for a chain that is derived from
    the installed models as `auto` says ("off": the requested model alone). `max_load_wait_s` and `upgrade_after_s` are
    the defaults' for all, `max_num_ctx` is the largest context of the team (None = that of the defaults).
    """

    name: str
    variants: tuple[Variant, ...] | None
    auto: AutoChains
    nothing_fits: NothingFits
    upgrade: Upgrade
    prefer: Prefer
    max_load_wait_s: float
    upgrade_after_s: float | None
    preload: bool = False
    max_num_ctx: int | None = None
    announce: Announce = "off"


class ChainRules:
    """The chain rules of one configuration, or of one team. `rule_for` is cached per name.

    With `base` these are a team's: a model that has no chain here has its rule there, but with `nothing_fits` of the
    team if that is not None, and contexts up to `max_num_ctx`. What `permit` denies is in none of its chains.
    """

    def __init__(
        self,
        chains: Mapping[str, ChainSection],
        defaults: Defaults,
        *,
        base: ChainRules | None = None,
        nothing_fits: NothingFits | None = None,
        permit: Permit | None = None,
        max_num_ctx: int | None = None,
    ) -> None:
        otherwise = nothing_fits or defaults.nothing_fits
        rules = {name: _rule(name, section, defaults, otherwise) for name, section in chains.items()}
        self._by_key = {key_of(name): rule for name, rule in rules.items() if not WILDCARDS.search(name)}
        patterns = sorted((name for name in rules if WILDCARDS.search(name)), key=_specificity)
        self._patterns = tuple((regex_of(name), rules[name]) for name in patterns)
        self._default = _default(defaults, otherwise)
        self._base, self._nothing_fits, self._permit, self._max_num_ctx = base, nothing_fits, permit, max_num_ctx
        self._most_cached = _MAX_CACHED if base is None else _MAX_CACHED_OF_TEAM
        self._cache: dict[str, ChainRule] = {}
        self.is_announcing: bool = any(rule.announce != "off" for rule in (*rules.values(), self._default)) or (
            base is not None and base.is_announcing
        )
        """False if no answer is announced, so that nothing has to be looked up for one."""

    @classmethod
    def only(cls, rule: ChainRule) -> ChainRules:
        """Return rules with one chain, for a request that brings its own."""
        rules = cls({}, Defaults())
        rules._by_key = {key_of(rule.name): rule}
        rules.is_announcing = rule.announce != "off"
        return rules

    @property
    def named(self) -> tuple[tuple[str, tuple[Variant, ...]], ...]:
        """The chains that have a name of their own and list their variants: clients see them as models."""
        inherited = [name for name, _ in self._base.named] if self._base is not None else []
        names = dict.fromkeys((*(rule.name for rule in self._by_key.values()), *inherited))
        by_key = {key_of(name): name for name in reversed(names)}
        rules = ((name, self.rule_for(name)) for name in names if by_key[key_of(name)] == name)
        return tuple((name, rule.variants) for name, rule in rules if rule.variants is not None)

    @property
    def own(self) -> Collection[str]:
        """The keys (`names.key_of`) of the chains that have a name of their own, without those of `base`."""
        return self._by_key.keys()

    @property
    def preloaded(self) -> tuple[str, ...]:
        """The names of the chains to load at start, without those of `base`."""
        return tuple(rule.name for rule in self._by_key.values() if rule.preload)

    def rule_for(self, model: str) -> ChainRule:
        """Return the rule for `model` in any spelling. Raise BadRequest if it is not a model name."""
        rule = self._cache.get(model)
        if rule is None:
            rule = self._permitted(self._find(ModelName.parse(model)) or self._inherited(model))
            if self._max_num_ctx is not None:
                rule = replace(rule, max_num_ctx=self._max_num_ctx)
            if len(self._cache) >= self._most_cached:
                self._cache.clear()
            self._cache[model] = rule
        return rule

    def denied(self, model: str) -> tuple[str, ...]:
        """Return the variants that a chain for `model` lists and that are denied, as they are written there."""
        if self._permit is None:
            return ()
        rule = self._find(ModelName.parse(model)) or self._inherited(model)
        return tuple(each.model for each in rule.variants or () if self._permit.denies(each.model))

    def substitutes(self, installed: Iterable[ModelFacts]) -> Iterable[ModelFacts]:
        """Return those of the installed models that may be in a derived chain."""
        permit = self._permit
        return installed if permit is None else [facts for facts in installed if permit.may_see(facts.name)]

    def _permitted(self, rule: ChainRule) -> ChainRule:
        """Return the rule without the variants that are denied; if all are, the requested model is left alone."""
        if self._permit is None or rule.variants is None:
            return rule
        kept = tuple(variant for variant in rule.variants if not self._permit.denies(variant.model))
        return replace(rule, variants=kept) if kept else replace(rule, variants=None, auto="off")

    def _find(self, name: ModelName) -> ChainRule | None:
        exact = self._by_key.get(name.key)
        if exact is not None:
            return exact
        spellings = (name.short.lower(), name.key, f"{name.namespace}/{name.model}:{name.tag}".lower())
        for pattern, rule in self._patterns:
            if any(pattern.fullmatch(spelling) for spelling in spellings):
                return rule
        return None

    def _inherited(self, model: str) -> ChainRule:
        if self._base is None:
            return self._default
        rule = self._base.rule_for(model)
        return rule if self._nothing_fits is None else replace(rule, nothing_fits=self._nothing_fits)


def _rule(name: str, section: ChainSection, defaults: Defaults, nothing_fits: NothingFits) -> ChainRule:
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
        section.nothing_fits or nothing_fits,
        section.upgrade or defaults.upgrade,
        section.prefer or defaults.prefer,
        defaults.max_load_wait_s,
        defaults.upgrade_after_s,
        section.preload,
        announce=section.announce or defaults.announce,
    )


def _default(defaults: Defaults, nothing_fits: NothingFits) -> ChainRule:
    """Return the rule of a model without a chain."""
    return ChainRule(
        "",
        None,
        defaults.auto_chains,
        nothing_fits,
        defaults.upgrade,
        defaults.prefer,
        defaults.max_load_wait_s,
        defaults.upgrade_after_s,
        announce=defaults.announce,
    )


def _specificity(pattern: str) -> int:
    """Return a sort key: more literal characters come first. Sorting is stable, so the file's order decides a tie."""
    return -len(WILDCARDS.sub("", pattern))
