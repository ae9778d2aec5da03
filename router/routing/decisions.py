"""Decisions and the destinations that follow from them, cached while the state of the backend is unchanged.

`choose` decides (core/decision/policy.py). This module gathers its arguments and determines how long a result is valid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec

from router.backend.backend import Backend
from router.config import ChainRules, Defaults
from router.core.decision.chain import Chain
from router.core.decision.context import PADDING
from router.core.decision.policy import choose
from router.core.decision.reserved import reserving
from router.core.decision.snapshot import Snapshot
from router.core.decision.upgrades import UpgradeRule
from router.core.decision.verdict import Decision, Rules, VerdictKind
from router.core.ollama.model import ModelFacts
from router.core.payload.read import BYTES_PER_TOKEN, InferenceRequest
from router.core.teams.team import Team
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.conversations import Conversations
from router.routing.destination import Destination
from router.routing.destinations import Destinations
from router.routing.ruled import RuledChain
from router.routing.standings import Standings

OTHERS_S = 1.0
"""The facts of a chain's further variants are waited for until this long after they were first asked for."""

RECENT_CHAINS = 32
"""Number of recently requested chains that `upgrade: idle` considers."""

MAX_REMEMBERED = 4096
"""Upper bound for cached decisions, and for cached destinations."""

PROMPT_STEP_BYTES = PADDING * BYTES_PER_TOKEN
"""Prompts are decided for as if they were this much longer, rounded up, so that similar requests share a decision.

Requests with equal keys stand in one group of the line: if they did not get equal decisions, one that the line lets in
to a resident would find its context too small, and be let in again, and so on indefinitely.
"""

T = TypeVar("T")


class Decisions:
    """Decides for one backend. `decide` and `known_destination` use the cache; `decide_afresh` does not.

    `catalog` returns the models by which chains are found: those of all backends, if there are several.
    `conversations` remembers what they were served by, on any backend.
    """

    def __init__(
        self,
        backend: Backend,
        chains: Chains,
        defaults: Defaults,
        catalog: Callable[[], Mapping[str, ModelFacts]] | None = None,
        conversations: Conversations | None = None,
    ) -> None:
        self.catalog = catalog or (lambda: backend.world.catalog)
        self.destinations = Destinations(backend.name, defaults)
        self._world = backend.world
        self._installed = backend.installed
        self._line = backend.line
        self._rules = backend.rules
        self._chains = chains
        self._decided: dict[Hashable, Decision] = {}
        self._destinations: dict[Hashable, Destination] = {}
        self._epoch = -1
        self._recent: dict[tuple[str, str], ChainRules | None] = {}  # team and name → the rules that a front has sent
        self._standings = Standings(backend.now)
        self._conversations = conversations or Conversations(defaults.conversations)

    # --- decisions ---------------------------------------------------------------------------------------------

    def chain_of(self, call: Call) -> RuledChain | None:
        """Return the chain of the requested name; None if Ollama itself should answer (unknown, cloud, invalid)."""
        return self._chains.find(call.request.model, self.catalog(), is_strict=call.strict, rules=call.chain_rules)

    def lacks_facts(self, name: str, rules: ChainRules | None = None) -> bool:
        """Return whether models that decide about `name` are still being shown, and worth waiting for."""
        if not self._installed.is_reading:
            return False
        first, others = self._chains.members(name, self.catalog(), rules)
        return bool(self._installed.awaited(first) or self._installed.awaited(others, OTHERS_S))

    async def read_facts(self, name: str, rules: ChainRules | None = None) -> None:
        """Have the models that decide about `name` shown first; return when they are, or their time is over."""
        first, others = self._chains.members(name, self.catalog(), rules)
        await self._installed.read_first(others, OTHERS_S)
        await self._installed.read_first(first)

    def decide(self, request: InferenceRequest, chain: RuledChain, team: str = "", kept: int | None = None) -> Decision:
        """Return the decision for a request of the team of that name; `kept` as returned for it.

        It is cached while the state is unchanged if it is settled (`is_settled`).
        """
        self._forget_what_changed()
        key = self.key(request, chain, team, kept)
        known = self._decided.get(key)
        if known is None:
            known = self.decide_afresh(request, chain, team, kept)
            if is_settled(known):
                _keep(self._decided, key, known)
        return known

    def decide_afresh(
        self, request: InferenceRequest, chain: RuledChain, team: str = "", kept: int | None = None
    ) -> Decision:
        """Return the decision for a request of the team of that name under the current state."""
        alike = msgspec.structs.replace(request, prompt_bytes=rounded_bytes(request))
        return choose(alike, chain, self._snapshot_for(team), self._rules_for(chain), self._upgrades(chain, kept))

    def to_wait_by(self, call: Call, chain: RuledChain) -> tuple[Hashable, Callable[[], Decision]]:
        """Return the key by which a request waits in line, and the function that decides for those of this key."""
        kept = self.kept(call, chain)
        key = self.key(call.request, chain, call.team, kept)
        return key, partial(self.decide, call.request, chain, call.team, kept)

    def kept(self, call: Call, chain: Chain) -> int | None:
        """Return the place in `chain` of the variant that served the last turn of its conversation; None = none did."""
        served = self._conversations.variant_of(call) if len(chain.variants) > 1 else ""
        return chain.place_of(served) if served else None

    def _rules_for(self, chain: RuledChain) -> Rules:
        """Return the rules in force, with the largest context of the team whose chain it is."""
        rules, most = self._rules(), chain.rule.max_num_ctx
        return rules if most is None else replace(rules, context=rules.context.at_most(most))

    def _snapshot_for(self, team: str) -> Snapshot:
        """Return the state, with what is reserved for other teams."""
        snapshot, floors = self._world.snapshot(), self._chains.floors()
        if not (floors and snapshot.gpus):
            return snapshot
        total_bytes = sum(gpu.total_bytes for gpu in snapshot.gpus)
        return reserving(snapshot, team, {name: floor.of_bytes(total_bytes) for name, floor in floors.items()})

    def _upgrades(self, chain: RuledChain, kept: int | None) -> UpgradeRule:
        """Return how a request of the chain returns to a bigger variant."""
        rule = chain.rule
        is_never = rule.upgrade == "never"
        return UpgradeRule(
            prefer=rule.prefer,
            is_never=is_never,
            is_moved_down=is_never or self._standings.is_moved_down(chain),
            is_spent=not self._line.may_upgrade(),
            after_s=rule.upgrade_after_s,
            patience=self._standings.patience(chain),
            max_load_wait_s=rule.max_load_wait_s,
            kept=kept,
        )

    def explain(
        self, model: str, num_ctx: int | None = None, team: Team | None = None
    ) -> tuple[RuledChain, Decision] | None:
        """Return chain and decision for a plain request of `team` (None = the default team).

        None for a name that is neither a chain of it nor installed.
        """
        asking = team or self._chains.default_team
        request = InferenceRequest(model, num_ctx=asking.caps.reduced_num_ctx(num_ctx))
        chain = self._chains.find(model, self.catalog(), rules=self._chains.rules_of(asking))
        return None if chain is None else (chain, self.decide_afresh(request, chain, asking.name))

    def key(self, request: InferenceRequest, chain: Chain, team: str = "", kept: int | None = None) -> Hashable:
        """Return the cache key of a decision: requests with equal keys get equal decisions."""
        return chain, shape_of(request), self._chains.asking(team), kept

    # --- destinations ------------------------------------------------------------------------------------------

    def known_destination(self, call: Call) -> Destination | None:
        """Return the destination of an earlier request with the same demands, None if there is none in this epoch."""
        if self._epoch != self._world.epoch.number:
            self._forget_what_changed()
        if call.request.is_unload or call.request.options_error:
            return None
        return self._destinations.get(self._demands(call))

    def remember(self, call: Call, decision: Decision, destination: Destination) -> None:
        """Cache a destination for the rest of the epoch, if its decision is settled."""
        if is_settled(decision):
            _keep(self._destinations, self._demands(call), destination)

    def _demands(self, call: Call) -> Hashable:
        """Return the cache key of a destination.

        The rules and the name determine the chain; the name is also in the key because answers repeat its spelling, and
        so is what other backends say of its first variant.
        """
        request, rules, team = call.request, call.chain_rules, self._chains.asking(call.team)
        passed_over = call.visit.passed_over if call.visit is not None else None
        return rules, request.model, call.strict, call.route.kind, *shape_of(request), passed_over, team

    def forget(self, teams: Collection[str]) -> None:
        """Forget what was decided: the rules in force are others, and `teams` are those that there are."""
        self._epoch = -1
        self._recent = {key: rules for key, rules in self._recent.items() if key[0] in teams}

    def _forget_what_changed(self) -> None:
        """Clear the caches in a new epoch."""
        if self._epoch != self._world.epoch.number:
            self._decided.clear()
            self._destinations.clear()
            self._epoch = self._world.epoch.number

    # --- recent chains -----------------------------------------------------------------------------------------

    def note_served(self, chain: Chain, decision: Decision) -> None:
        """Note by which variant of `chain` a request is served."""
        self._standings.note_served(chain, decision)

    def note_turn(self, call: Call, destination: Destination) -> None:
        """Note where a request is sent as a turn of its conversation; for a chain that has other variants."""
        self._conversations.note(call, destination.variant)

    def remember_chain(self, chain: RuledChain, team: str, rules: ChainRules | None = None) -> None:
        """Remember `chain` as recently requested by the team of that name; `rules` if a front has sent them."""
        key = team, chain.name
        self._recent.pop(key, None)  # to the end: the first one is the longest unasked
        self._recent[key] = rules
        if len(self._recent) > RECENT_CHAINS:
            del self._recent[next(iter(self._recent))]

    def recent_chains(self) -> list[tuple[str, ChainRules]]:
        """Return the names of the most recently requested chains, with the rules in force by which they are found."""
        return [(name, rules or self._chains.rules_of(Team(team))) for (team, name), rules in self._recent.items()]


def _keep(cache: dict[Hashable, T], key: Hashable, value: T) -> None:
    """Add to a cache, which is cleared when it is full: clients can make up any number of keys."""
    if len(cache) >= MAX_REMEMBERED:
        cache.clear()
    cache[key] = value


def is_settled(decision: Decision) -> bool:
    """Return True if only a new epoch can change the decision.

    That is so if a resident is chosen and no variant was held back, since the swap budget changes with time alone.
    """
    if decision.chosen is None:
        return False
    kinds = {verdict.kind for verdict in decision.verdicts}
    return decision.chosen.kind is VerdictKind.RESIDENT and VerdictKind.HELD_BACK not in kinds


def shape_of(request: InferenceRequest) -> tuple[Hashable, ...]:
    """Return what a decision depends on besides the chain; of the prompt, in how many steps `rounded_bytes` is."""
    steps = -(-request.prompt_bytes // PROMPT_STEP_BYTES)
    return request.num_ctx, request.options, request.needs, request.is_automatic, steps, request.num_predict


def rounded_bytes(request: InferenceRequest) -> int:
    """Return the size of the prompt that is decided for: the next step."""
    return -(-request.prompt_bytes // PROMPT_STEP_BYTES) * PROMPT_STEP_BYTES
