"""Decisions, remembered while the state of the backend stays the same, and the destinations that follow from them.

`choose` decides (core/decision/policy.py); here is what it is asked with, and how long its answer holds.
"""

from __future__ import annotations

from collections.abc import Hashable

from router.backend.backend import Backend
from router.config import Defaults
from router.core.decision.chain import Chain
from router.core.decision.policy import choose
from router.core.decision.verdict import Decision, VerdictKind
from router.core.payload.read import InferenceRequest
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.destination import Destination
from router.routing.destinations import Destinations

RECENT_CHAINS = 32
"""Chains that `upgrade: idle` looks after: the last ones that were asked for."""

MOST_REMEMBERED = 4096
"""Settled decisions, and destinations, that are kept while nothing changes."""

PROMPT_STEP_BYTES = 8192
"""Prompts whose lengths differ by less than this get the same decision."""


class Decisions:
    """See the module. `decide` and `known_destination` remember; `decide_afresh` does not."""

    def __init__(self, backend: Backend, chains: Chains, defaults: Defaults) -> None:
        self.destinations = Destinations(backend.name, defaults)
        self._world = backend.world
        self._line = backend.line
        self._rules = backend.rules
        self._chains = chains
        self._decided: dict[Hashable, Decision] = {}
        self._destinations: dict[Hashable, Destination] = {}
        self._epoch = -1
        self._recent: dict[str, Chain] = {}

    # --- decisions ---------------------------------------------------------------------------------------------

    def chain_of(self, call: Call) -> Chain | None:
        """The chain of the requested name; None where Ollama itself should answer (unknown, cloud, no valid name)."""
        return self._chains.find(call.request.model, self._world.catalog, is_strict=call.strict)

    def decide(self, request: InferenceRequest, chain: Chain) -> Decision:
        """`choose`, remembered while nothing has changed for a request whose first usable variant is resident."""
        self._forget_what_changed()
        key = self.key(request, chain)
        known = self._decided.get(key)
        if known is None:
            known = self.decide_afresh(request, chain)
            if is_settled(known):
                self._decided[key] = known
        return known

    def decide_afresh(self, request: InferenceRequest, chain: Chain) -> Decision:
        """`choose` under the current state."""
        may_upgrade = self._line.may_upgrade() and self._chains.rule(chain.name).upgrade != "never"
        snapshot = self._world.snapshot(may_upgrade=may_upgrade)
        return choose(request, chain, snapshot, self._rules())

    def explain(self, model: str, num_ctx: int | None = None) -> tuple[Chain, Decision] | None:
        """The decision now for a plain request; None for a name that is neither a chain nor installed."""
        request = InferenceRequest(model, num_ctx=num_ctx)
        chain = self._chains.find(model, self._world.catalog)
        return None if chain is None else (chain, self.decide_afresh(request, chain))

    @staticmethod
    def key(request: InferenceRequest, chain: Chain) -> Hashable:
        """Requests with equal keys get equal decisions (the prompt's length in steps)."""
        return chain, _shape(request)

    # --- destinations ------------------------------------------------------------------------------------------

    def known_destination(self, call: Call) -> Destination | None:
        """The destination of an earlier request with the same demands, while nothing has changed since."""
        self._forget_what_changed()
        if call.request.is_unload or call.request.options_error:
            return None
        return self._destinations.get(_demands(call))

    def remember(self, call: Call, decision: Decision, destination: Destination) -> None:
        """Keep a destination that holds until something changes."""
        if is_settled(decision):
            self._destinations[_demands(call)] = destination

    def _forget_what_changed(self) -> None:
        """Decisions hold for one epoch; what clients can ask for is unbounded, so the number is bounded too."""
        is_old = self._epoch != self._world.epoch.number
        if is_old or len(self._decided) > MOST_REMEMBERED or len(self._destinations) > MOST_REMEMBERED:
            self._decided.clear()
            self._destinations.clear()
            self._epoch = self._world.epoch.number

    # --- recent chains -----------------------------------------------------------------------------------------

    def note(self, chain: Chain) -> None:
        """`chain` was asked for."""
        if chain.name in self._recent:
            return
        if len(self._recent) >= RECENT_CHAINS:
            del self._recent[next(iter(self._recent))]
        self._recent[chain.name] = chain

    def recent_chains(self) -> list[Chain]:
        """The chains that were asked for last."""
        return list(self._recent.values())


def is_settled(decision: Decision) -> bool:
    """True when only a change of state (its epoch) can change the decision: no swap budget is in it."""
    if decision.chosen is None:
        return False
    kinds = {verdict.kind for verdict in decision.verdicts}
    return decision.chosen.kind is VerdictKind.RESIDENT and VerdictKind.HELD_BACK not in kinds


def _shape(request: InferenceRequest) -> Hashable:
    """What a decision depends on beside the chain."""
    tokens = request.prompt_bytes // PROMPT_STEP_BYTES, request.num_predict
    return request.num_ctx, request.options, request.needs, request.is_automatic, tokens


def _demands(call: Call) -> Hashable:
    """What a destination depends on: team and name give the chain, and the name's spelling is in the answer."""
    return call.team, call.request.model, call.strict, call.route.kind, _shape(call.request)
