"""The chain of a requested name: configured, derived from the installed models, or none (Ollama itself answers).

Which chain that is depends on the rules of who asks. Where no rules are given, those of the default team count.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.config import ChainRule, ChainRules, Rulebook
from router.core.decision.chain import Chain, KinOf, Variant, auto_chain
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import MAX_NAME, ModelName, Source, is_name, key_of
from router.core.teams.team import Memory, Team
from router.errors import BadRequest
from router.routing.call import Call
from router.routing.ruled import RuledChain, RulesInForce

MAX_REMEMBERED = 4096


class Chains:
    """Finds chains by requested name, and caches them until the catalog changes."""

    def __init__(self, rules: RulesInForce) -> None:
        self._in_force = rules
        self._remembered: dict[tuple[ChainRules, str, bool], RuledChain | None] = {}
        self._catalog: Mapping[str, ModelFacts] | None = None
        self._kin = KinOf({})
        self._floors_of: Rulebook | None = None
        self._floors: Mapping[str, Memory] = {}

    def begin(self, call: Call) -> None:
        """Give a request that begins now the rulebook in force, which it keeps to its end."""
        if call.rules is None:
            call.begin(self._in_force.book)

    @property
    def default_team(self) -> Team:
        """The team in force of requests that nothing identifies."""
        return self._in_force.book.default_team

    def rules_of(self, team: Team | None = None) -> ChainRules:
        """Return the chain rules in force for requests of `team`; None = the default team."""
        return self._in_force.book.chains_of(self.default_team if team is None else team)

    def forget(self) -> None:
        """Forget the chains that were found: the rules in force are others."""
        self._remembered.clear()

    def asking(self, team: str) -> str:
        """Return the team as far as decisions depend on it: not at all without floors."""
        floors = self._floors if self._in_force.book is self._floors_of else self.floors()
        return team if floors else ""

    def floors(self) -> Mapping[str, Memory]:
        """Return the memory of which others may not take the last, by the names of the teams that have such a floor."""
        book = self._in_force.book
        if book is not self._floors_of:
            self._floors_of = book
            self._floors = {team.name: team.memory.floor for team in book.teams if team.memory.floor is not None}
        return self._floors

    def find(
        self,
        name: str,
        catalog: Mapping[str, ModelFacts],
        *,
        is_strict: bool = False,
        rules: ChainRules | None = None,
    ) -> RuledChain | None:
        """Return the chain for `name` as a client spells it; None if it is unknown, invalid, or runs elsewhere.

        A strict request gets a chain of the first variant only. The result is the same object until the catalog
        changes, so that decisions can be keyed by it.
        """
        if len(name) > MAX_NAME:  # no model has it, and it is not to be remembered
            return None
        if catalog is not self._catalog:
            self._remembered.clear()
            self._catalog = catalog
        rules = rules or self.rules_of()
        key = rules, name, is_strict
        if key in self._remembered:
            return self._remembered[key]
        if len(self._remembered) >= MAX_REMEMBERED:  # clients can make up any number of names
            self._remembered.clear()
        chain = self._find(name, catalog, rules)
        found = None
        if chain is not None:
            found = RuledChain(chain.name, chain.variants[:1] if is_strict else chain.variants, rules.rule_for(name))
        self._remembered[key] = found
        return found

    def _find(self, name: str, catalog: Mapping[str, ModelFacts], rules: ChainRules) -> Chain | None:
        try:
            parsed = ModelName.parse(name)
        except BadRequest:
            return None
        if parsed.source is Source.CLOUD:
            return None
        rule = rules.rule_for(name)
        if rule.variants is not None:
            return Chain(parsed.short, rule.variants)
        asked = catalog.get(parsed.key)
        if asked is None or asked.is_remote:
            return None
        if rule.auto == "off":
            return Chain(asked.name, (Variant(asked.name),))
        return auto_chain(asked, rules.substitutes(self._kin_of(catalog).facts(asked)), rule.auto)

    def _kin_of(self, catalog: Mapping[str, ModelFacts]) -> KinOf:
        if self._kin.catalog is not catalog:
            self._kin = KinOf(catalog)
        return self._kin

    def members(
        self, name: str, catalog: Mapping[str, ModelFacts], rules: ChainRules | None = None
    ) -> tuple[list[str], list[str]]:
        """Return the keys of the models whose facts decide about `name`: the first of its chain, and the others."""
        if not is_name(name):
            return [], []
        rule = (rules or self.rules_of()).rule_for(name)
        if rule.variants is not None:
            keys = [key_of(variant.model) for variant in rule.variants]
            return keys[:1], keys[1:]
        key = key_of(name)
        asked = catalog.get(key)
        if asked is None or rule.auto == "off":
            return [key], []
        return [key], [other for other in self._kin_of(catalog).keys(asked) if other != key]

    @staticmethod
    def is_remote(name: str, catalog: Mapping[str, ModelFacts]) -> bool:
        """Return True for an installed name that stands for a model on another server."""
        facts = catalog.get(key_of(name)) if is_name(name) else None
        return facts is not None and facts.is_remote

    @staticmethod
    def is_local(name: str) -> bool:
        """Return True for a valid name that is not a cloud model."""
        try:
            return ModelName.parse(name).source is not Source.CLOUD
        except BadRequest:
            return False

    def rule(self, name: str, rules: ChainRules | None = None) -> ChainRule:
        """Return the configured rule for a name that `find` has found."""
        return (rules or self.rules_of()).rule_for(name)

    def explicit(self, team: Team | None = None) -> list[Chain]:
        """Return the chains that list their variants, by their own names, as `team` has them."""
        return [Chain(name, variants) for name, variants in self.rules_of(team).named]

    def is_named(self, name: str) -> bool:
        """Return whether any team has a chain of that name."""
        return is_name(name) and self._in_force.book.is_named(key_of(name))
