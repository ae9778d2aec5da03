"""Requests without a usable variant: passed on, refused, or kept waiting.

Nothing is awaited here; what must be awaited is returned as `Blocked`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from router.backend.backend import Backend
from router.backend.tickets import GoOn, Ticket
from router.core.advice.nearest import nearest
from router.core.decision.chain import Chain
from router.core.decision.lasting import is_lasting, lasting_refusal
from router.core.decision.report import lines_of, refusal
from router.core.decision.verdict import READY, Decision, Outcome, Verdict, VerdictKind
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import Patch
from router.core.teams.rights import REMOTE_REFUSED, permit_of
from router.errors import Forbidden, LoadFailed, NeverFits, NoVariantFits
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.destination import Destination
from router.routing.destinations import KEEP_ALIVE, NO_PATCH, Destinations, digest_of, patch_of
from router.routing.ends import Ends, decision_template, passed_on_template
from router.telemetry import Decided

IN_USE = "unload: other teams use it"
LOOK_AGAIN_S = 1.0
"""Polling interval of a request that waits for memory (`nothing_fits: wait`)."""


class Blocked(msgspec.Struct, frozen=True, gc=False):
    """Why a request cannot be sent yet, and what to await before the next attempt.

    Awaiting `until()` returns a connection for "connection", and the weights that the request was let in to for "turn".
    For that one, `join` is the same without a task: see `Waits.join`.
    """

    why: Literal["upstream", "name", "reading", "turn", "tag", "connection", "room", "variant", "facts"]
    until: Callable[[], Awaitable[object]]
    join: Callable[[GoOn], Ticket] | None = None


class Outcomes:
    """Decides about requests without a usable variant. `wait_s` bounds `nothing_fits: wait`."""

    def __init__(
        self,
        backend: Backend,
        chains: Chains,
        destinations: Destinations,
        ends: Ends,
        wait_s: float,
    ) -> None:
        self._world = backend.world
        self._line = backend.line
        self._residency = backend.residency
        self._keepalive = backend.keepalive
        self._contest = backend.contest
        self._derived = backend.derived
        self._chains = chains
        self._destinations = destinations
        self._ends = ends
        self._wait_s = wait_s
        self._now = backend.now
        self._read_at_s = -1.0

    # --- requests that need no decision ------------------------------------------------------------------------

    def pass_unchanged(self, call: Call, reason: str) -> Destination:
        """Pass the request on unchanged: Ollama itself answers it."""
        return self._destinations.passed_on(call, f"passthrough: {reason}")

    def pass_not_installed(self, call: Call) -> Destination:
        """Pass on a request for a model that is not there: the error is Ollama's, the hint is in the reason."""
        permit = permit_of(call.identity.team)
        seen = (facts.name for facts in self._world.catalog.values() if permit.may_see(facts.name))
        near = nearest(call.request.model, seen)
        return self.pass_unchanged(call, f"not installed{f' (did you mean {near}?)' if near else ''}")

    def pass_to_remote(self, call: Call) -> Destination:
        """Pass on a request for a model that another server runs. Raises Forbidden where cloud models are refused."""
        if not call.may_use_remote:
            raise Forbidden(REMOTE_REFUSED)
        return self.pass_unchanged(call, "runs on another server")

    def bad_option(self, call: Call, chain: Chain) -> Destination:
        """Pass on a request with an option of the wrong type: Ollama's own error names the option.

        If the chain's name is not a model, its first installed variant is used instead.
        """
        installed = chain.installed(self._world.catalog)
        is_model = key_of(call.request.model) in self._world.catalog
        model = "" if is_model or not installed else installed[0]
        return self._destinations.passed_on(call, f"passthrough: {call.request.options_error}", model)

    def unload(self, call: Call, chain: Chain) -> Destination:
        """Pass on an unload under the name of the variant that is loaded; it never loads a model.

        One that other teams use as well stays: without `keep_alive` it is a request that does nothing.
        """
        for variant in chain.variants:
            tracked = self._world.residents.get(self._world.installed.weights_of(variant.model))
            if tracked is not None and call.unloads_as and tracked.is_shared(call.unloads_as, self._now()):
                options, loads = patch_of(tracked.sent_options), tracked.weights
                return self._destinations.passed_on(
                    call, IN_USE, variant.model, patch=options, drop=KEEP_ALIVE, loads=loads
                )
            if tracked is not None:
                # Book the unload before Ollama carries it out: no request may enter the model in between.
                self._keepalive.apply(tracked, 0.0)
                self._world.residents.go(tracked, self._now())
                return self._destinations.passed_on(call, "unload", variant.model)
        return self._destinations.passed_on(call, "unload: not loaded", chain.variants[0].model)

    def placed(self, call: Call, chain: Chain, decision: Decision, chosen: Verdict) -> Destination:
        """Pass on a request for a model whose placement was asked for (num_gpu): Ollama does it, and evicts for it."""
        template = decision_template(call, chain, decision)
        model = chosen.variant.model
        return self._destinations.passed_on(
            call, template.reason, model, decided=template, loads=self._world.installed.weights_of(model)
        )

    # --- requests of fronts ------------------------------------------------------------------------------------

    def decline(self, call: Call, decision: Decision) -> Blocked | None:
        """Send a request back to its front that it should not wait for here. Raises Misdirected.

        Returns what must be read before that is known, None if the request is served here. A front counts on what it
        was told a while ago: that the variant that it has chosen, or a bigger one, is loaded or can be, and at once
        unless it says otherwise. A load is begun by readings that are younger than the request, like a refusal: what
        it finds taken only then has held up others, and is a failure here.
        """
        front, chosen = call.front, decision.chosen
        assert front is not None
        if chosen is not None and chosen.kind in READY:
            return None
        if self._read_at_s < call.since_s:
            return Blocked("reading", self._read)
        if chosen is not None and (front.told.may_wait or chosen.kind is not VerdictKind.WAITS):
            return None
        raise front.declined(lines_of(decision), decision.verdicts)

    # --- nothing fits ------------------------------------------------------------------------------------------

    def nothing_fits(self, call: Call, chain: Chain, decision: Decision) -> Destination | Blocked:
        """Apply the configured rule: pass on, let it spill, wait, or refuse. Raises NoVariantFits or LoadFailed."""
        template = decision_template(call, chain, decision)
        # 1. Without a GPU nothing can fit, and nothing is refused, unless other nodes may have one.
        if decision.outcome is Outcome.PASSTHROUGH and not call.has_elsewhere:
            return self._destinations.passed_on(call, "passthrough: no GPU", decided=template)
        # 2. Read again before any rule applies.
        if self._read_at_s < call.since_s:
            return Blocked("reading", self._read)  # no request is refused because of a reading older than itself
        # 3. The client's own rule overrides the chain's. What a front has elsewhere comes before any of them.
        rule = call.nothing_fits or self._chains.rule(call.request.model, call.chain_rules).nothing_fits
        if call.has_elsewhere:
            rule = "refuse"
        if rule in ("passthrough", "allow_partial"):
            first = _first_able(decision)
            model = first.variant.model if first is not None else ""
            passed = passed_on_template(rule, model or call.request.model, template)
            reason = f"{rule}: {refusal(chain, decision)}"
            if rule == "allow_partial" and first is not None:
                return self._let_spill(call, reason, first, passed)
            loads = self._world.installed.weights_of(model) if model else ""
            return self._destinations.passed_on(call, reason, model, decided=passed, loads=loads)
        # 4. Wait, unless the time for it is over, or no time would be enough. The memory that a load of others takes is
        # in no book for a while.
        is_final = is_lasting(decision, gpus := self._world.cards.gpus) and not call.has_elsewhere
        wait_s = (
            min(self._wait_s, call.wait_s)
            if rule == "wait"
            else max(self._contest.in_flux_s, self._world.loads.in_flux_s)
        )
        if not is_final and self._now() - call.since_s < wait_s:
            return Blocked("room", lambda: asyncio.sleep(LOOK_AGAIN_S))
        call.mark_refused(self._now())
        self._raise_failed_load(decision)
        self._ends.report_decision(call, template)
        if is_final:
            raise NeverFits(lasting_refusal(chain, decision, gpus))
        raise NoVariantFits(refusal(chain, decision), retry_after_s=max(1.0, self._line.expected_wait_s()))

    async def _read(self) -> None:
        await self._world.refresh_fresh()
        await self._world.installed.look_up()  # a variant may have been installed since the last reading
        self._read_at_s = self._now()

    def _raise_failed_load(self, decision: Decision) -> None:
        """Raise Ollama's own error if a variant is barred because its load failed."""
        for verdict in decision.verdicts:
            if verdict.kind is VerdictKind.FAILED and verdict.facts is not None:
                failed = self._residency.last_failure(verdict.facts.weights)
                if failed is not None:
                    raise LoadFailed(failed.message, status=failed.status)

    def _let_spill(self, call: Call, reason: str, first: Verdict, passed: Decided) -> Destination | Blocked:
        """Pass on a request whose model may spill; with the chain's context if it sets one, since more spills more."""
        num_ctx, model = first.variant.num_ctx, first.variant.model
        weights = self._world.installed.weights_of(model)
        self._world.residents.let_spill(weights)
        if not isinstance(num_ctx, int) or call.request.num_ctx is not None or first.num_ctx != num_ctx:
            if call.request.num_ctx is None:  # one context for every prompt: no reload as a conversation grows
                reason += "; it runs at Ollama's default context"
            return self._destinations.passed_on(call, reason, model, decided=passed, loads=weights)
        options = LoadOptions(num_ctx=num_ctx)
        if not self._destinations.needs_tag(call, options):
            patch = Patch.of({"num_ctx": num_ctx}) if call.route.dialect == "ollama" else NO_PATCH
            return self._destinations.passed_on(call, reason, model, patch=patch, decided=passed, loads=weights)
        tag = self._derived.existing(model, digest_of(first), options)
        if tag is None:
            return Blocked("tag", lambda: self._derived.ensure(model, digest_of(first), options))
        return self._destinations.passed_on(call, reason, model, tag=tag, decided=passed, loads=weights)


def _first_able(decision: Decision) -> Verdict | None:
    """Return the variant that may spill: the first of the chain that is installed and capable."""
    able = (v for v in decision.verdicts if v.facts is not None and v.kind is not VerdictKind.INCAPABLE)
    return next(able, None)
