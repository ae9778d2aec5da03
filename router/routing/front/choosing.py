"""Which node a request goes to: by what it wants of its chain, and by what the nodes have told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import msgspec

from router.backend.rules import context_rules
from router.config import Config
from router.core.decision.fleet.offer import Offer
from router.core.decision.fleet.passed_over import NOT_PASSED_OVER, PassedOver
from router.core.decision.fleet.rank import Ranked
from router.core.nodes.choice import Choice
from router.core.nodes.wanted import Wanted, wanted_of
from router.core.ollama.names import is_name, key_of
from router.core.payload.read import InferenceRequest
from router.core.teams.rights import REMOTE_REFUSED
from router.errors import Forbidden
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.decisions import rounded_bytes, shape_of
from router.routing.fleet.failures import Failures
from router.routing.front.going import Going, as_it_can, to_pick
from router.routing.front.members import Members
from router.routing.front.node import Node
from router.routing.outcomes import Blocked
from router.routing.ruled import RuledChain

MOST_CANDIDATES = 3
"""Nodes that a request is offered to; then one does what it can."""

MOST_WANTED = 4096
WHY_KEPT_S = 1.0
"""How long it is known why a first variant does not serve."""


class Choosing:
    """Chooses among the nodes. `own` counts what this front has under way, by node and weights."""

    def __init__(
        self, members: Members, chains: Chains, failures: Failures, config: Config, own: Callable[[str, str], int]
    ) -> None:
        self._members = members
        self._chains = chains
        self._failures = failures
        self._choice = Choice(members.index, own, config.fleet.load_factor)
        self._rules = context_rules(config.defaults)
        self._has_automatic = not config.defaults.derived_tags
        self._wait_s = config.queue.wait_s
        self._wanted: dict[Hashable, Wanted] = {}
        self._why: dict[Wanted, tuple[float, PassedOver]] = {}

    def choose(self, call: Call, now_s: float) -> Going | Blocked:
        """Return where a call goes; Blocked if something must be awaited before that is known.

        Raises NoNodeAnswers, UpstreamAway for what only nodes have that cannot be used, or Forbidden.
        """
        failed: Collection[str] = call.visit.failed if call.visit is not None else ()
        index, request = self._members.index, call.request
        if not index or (not index.catalog and not call.is_looked_up):
            if index:
                call.mark_looked_up()
            return Blocked("upstream", self._members.reach)
        if not request.has_model:
            return Going(self._any(failed))
        chain = self._chain_of(call)
        if chain is None:
            return self._without_chain(call, failed)
        wait_s = self._wait_s - (now_s - call.since_s)
        if request.options_error or request.is_unload:
            first, *others = self._with_model(chain, failed)
            going = as_it_can(call, first, chain, wait_s)
            return replace(going, others=tuple(others)) if request.is_unload else going
        if self._has_automatic and call.route.dialect != "ollama" and not request.is_automatic:
            call.use_default_options()
        wanted = self._wanted_of(call.request, chain)
        if len(failed) < MOST_CANDIDATES:
            left_out = partial(self._left_out, now_s) if self._failures.breakers else None
            pick = self._choice.pick(wanted, partial(_conversation, call), now_s, failed, left_out)
            if pick is not None and (node := self._members.named(pick.node)) is not None:
                if pick.position and call.visit is not None:
                    call.visit.pass_over(self._passed_over(wanted, pick.node, now_s))
                return to_pick(call, node, chain, wanted, pick, wait_s)
        self._members.check_not_away([one.key for one in wanted.variants])
        last = self._last_resort(call, wanted, now_s, failed)
        node = self._members.named(last) if last is not None else None
        if node is None:
            raise self._members.nobody()
        return as_it_can(call, node, chain, wait_s)

    def has_others(self, call: Call, failed: Collection[str]) -> bool:
        """Return True if a node that has not failed a call could serve it; one that declined it may be asked again."""
        declined = call.visit.declined if call.visit is not None else ()
        failed = [name for name in failed if name not in declined]
        chain = self._chain_of(call) if call.request.has_model else None
        if chain is None:
            return any(state.is_usable and state.name not in failed for state in self._members.index)
        wanted = self._wanted_of(call.request, chain)
        return self._choice.pick(wanted, _none, call.since_s, failed) is not None or self._is_any_left(wanted, failed)

    def _is_any_left(self, wanted: Wanted, failed: Collection[str]) -> bool:
        return any(
            state.is_usable and state.name not in failed and any(state.models.get(one.key) for one in wanted.variants)
            for state in self._members.index
        )

    def variant_of(self, request: InferenceRequest, chain: RuledChain, now_s: float) -> str | None:
        """Return the variant that would serve a plain request now, None if none would."""
        wanted = self._wanted_of(request, chain)
        pick = self._choice.pick(wanted, _none, now_s)
        return wanted.variants[pick.position].model if pick is not None else None

    def ranked(self, request: InferenceRequest, chain: RuledChain, now_s: float) -> tuple[Ranked, ...]:
        """Return all nodes for a plain request, the best first."""
        return self._choice.ranked(self._wanted_of(request, chain), now_s)

    def forget(self) -> None:
        """Forget what requests wanted by the rules before a reload."""
        self._wanted.clear()
        self._why.clear()

    # --- parts -------------------------------------------------------------------------------------------------

    def _last_resort(self, call: Call, wanted: Wanted, now_s: float, failed: Collection[str]) -> str | None:
        """Return the node that can do most: one that has not had the request, or has declined it, or else any."""
        lost: Collection[str] = call.visit.lost if call.visit is not None else ()
        for spared in (failed, lost, ()):
            if (name := self._choice.last_resort(wanted, now_s, spared)) is not None:
                return name
        return None

    def _chain_of(self, call: Call) -> RuledChain | None:
        catalog = self._members.index.catalog
        return self._chains.find(call.request.model, catalog, is_strict=call.strict, rules=call.chain_rules)

    def _wanted_of(self, request: InferenceRequest, chain: RuledChain) -> Wanted:
        key = chain, shape_of(request)
        found = self._wanted.get(key)
        if found is None:
            if len(self._wanted) >= MOST_WANTED:
                self._wanted.clear()
            most = chain.rule.max_num_ctx
            rules = self._rules if most is None else self._rules.at_most(most)
            alike = msgspec.structs.replace(request, prompt_bytes=rounded_bytes(request))
            found = self._wanted[key] = wanted_of(alike, chain, self._members.index.catalog, rules)
        return found

    def _passed_over(self, wanted: Wanted, served: str, now_s: float) -> PassedOver:
        """Return why the first variant is not to serve, by all nodes; found out once a second for equal requests."""
        until_s, known = self._why.get(wanted, (0.0, NOT_PASSED_OVER))
        if now_s >= until_s:
            if len(self._why) >= MOST_WANTED:
                self._why.clear()
            known = self._choice.why_passed_over(wanted, served, self._away(wanted), now_s)
            self._why[wanted] = now_s + WHY_KEPT_S, known
        return known

    def _away(self, wanted: Wanted) -> Iterator[Offer]:
        """Yield the offers of nodes that are out, and had the first variant when they were last heard of."""
        key = wanted.variants[0].key
        for node in self._members.all():
            if node.why_out and node.models.get(key) is not None:
                yield Offer(node.name, has_first=True, away=node.why_out)

    def _left_out(self, now_s: float, node: str, model: str) -> float:
        return self._failures.breakers.open_for_s(node, model, now_s)

    def _without_chain(self, call: Call, failed: Collection[str]) -> Going | Blocked:
        """Return where a name without a chain goes: to a node that has it from another server, else to any.

        The answer, which is an error as a rule, is Ollama's own.
        """
        name = call.request.model
        if self._chains.is_local(name) and not call.is_looked_up:
            call.mark_looked_up()
            return Blocked("name", self._members.refreshed)
        is_remote = not self._chains.is_local(name) or self._chains.is_remote(name, self._members.index.catalog)
        if is_remote and is_name(name) and not call.may_use_remote:
            raise Forbidden(REMOTE_REFUSED)
        if is_name(name):
            self._members.check_not_away([key_of(name)])
        having = [node for node in self._members.usable() if is_name(name) and node.models.get(key_of(name))]
        return Going(next((node for node in having if node.name not in failed), None) or self._any(failed))

    def _with_model(self, chain: RuledChain, failed: Collection[str]) -> list[Node]:
        """Return the nodes for a request that needs no decision: where a variant is loaded, or else one that has it."""
        index = self._members.index
        keys = [key_of(variant.model) for variant in chain.variants]
        weights = [facts.weights for key in keys if (facts := index.catalog.get(key)) is not None]
        names = [name for one in weights for name in index.held(one) if name not in failed]
        if not names:
            installed = (state.name for state in index if state.is_usable and any(map(state.models.get, keys)))
            names = list(islice((name for name in installed if name not in failed), 1))
        return [node for name in dict.fromkeys(names) if (node := self._members.named(name))] or [self._any(failed)]

    def _any(self, failed: Collection[str]) -> Node:
        """Return a node for what all of them answer alike: one with little to do. Raises NoNodeAnswers."""
        states = [state for state in self._members.index if state.is_usable]
        left = [state for state in states if state.name not in failed] or states
        best = min(left, key=lambda state: state.busy, default=None)
        node = self._members.named(best.name) if best is not None else None
        if node is None:
            raise self._members.nobody()
        return node


def _conversation(call: Call) -> int:
    return call.visit.conversation(call.body) if call.visit is not None else 0


def _none() -> int:
    return 0
