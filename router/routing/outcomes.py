"""What becomes of a request that no variant can serve now, or that needs none: refused, passed on, kept waiting.

Nothing is awaited here: what must be is returned as `Blocked`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from router.backend.backend import Backend
from router.core.decision.chain import Chain
from router.core.decision.report import refusal
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import Patch
from router.errors import LoadFailed, NoVariantFits
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.destination import Destination
from router.routing.destinations import NO_PATCH, Destinations, digest_of
from router.routing.ends import Ends, decided_by, passed_by
from router.telemetry import Decided

LOOK_AGAIN_S = 1.0
"""A request that waits for room (`nothing_fits: wait`) is decided again this often."""


class Blocked(NamedTuple):
    """Something must be awaited before a request can be tried again: `why`, and what to await.

    What is awaited returns a connection (`connection`), or the weights that the request was let in to (`turn`).
    """

    why: Literal["upstream", "name", "reading", "turn", "tag", "connection", "room", "variant"]
    until: Callable[[], Awaitable[object]]


class Outcomes:
    """See the module. `wait_s` bounds `nothing_fits: wait`."""

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
        self._derived = backend.derived
        self._chains = chains
        self._destinations = destinations
        self._ends = ends
        self._wait_s = wait_s
        self._now = backend.now
        self._read_at_s = -1.0

    # --- requests that need no decision ------------------------------------------------------------------------

    def not_ours(self, call: Call, reason: str) -> Destination:
        """Pass the request on unchanged: Ollama itself answers it."""
        return self._destinations.passed_on(call, f"passthrough: {reason}")

    def bad_option(self, call: Call, chain: Chain) -> Destination:
        """Pass a request with an option of the wrong type on: Ollama's own error names it.

        Where the chain's name is not a model, its first installed variant stands for it.
        """
        installed = chain.installed(self._world.catalog)
        is_model = key_of(call.request.model) in self._world.catalog
        model = "" if is_model or not installed else installed[0]
        return self._destinations.passed_on(call, f"passthrough: {call.request.options_error}", model)

    def unload(self, call: Call, chain: Chain) -> Destination:
        """Send an unload to the variant that is loaded; it never loads anything."""
        for variant in chain.variants:
            tracked = self._world.residents.get(self._world.installed.weights_of(variant.model))
            if tracked is not None:
                self._keepalive.asked(tracked, 0.0)
                self._world.residents.go(tracked, self._now())
                return self._destinations.passed_on(call, "unload", variant.model)
        return self._destinations.passed_on(call, "unload: not loaded", chain.variants[0].model)

    # --- nothing fits ------------------------------------------------------------------------------------------

    def nothing_fits(self, call: Call, chain: Chain, decision: Decision) -> Destination | Blocked:
        """Do what is configured: pass on, let it spill, wait, or refuse. Raises NoVariantFits or LoadFailed."""
        template = decided_by(call.request.model, chain, decision)
        if decision.outcome is Outcome.PASSTHROUGH:
            return self._destinations.passed_on(call, "passthrough: no GPU", decided=template)
        if self._read_at_s < call.since_s:
            return Blocked("reading", self._read)  # nobody is refused by what was true a second ago
        rule = call.nothing_fits or self._chains.rule(call.request.model).nothing_fits
        if rule in ("passthrough", "allow_partial"):
            first = _first_able(decision)
            model = first.variant.model if first is not None else ""
            passed = passed_by(rule, model or call.request.model, template)
            reason = f"{rule}: {refusal(chain, decision)}"
            if rule == "allow_partial" and first is not None:
                return self._let_spill(call, reason, first, passed)
            return self._destinations.passed_on(call, reason, model, decided=passed)
        if rule == "wait" and self._now() - call.since_s < self._wait_s:
            return Blocked("room", lambda: asyncio.sleep(LOOK_AGAIN_S))
        call.waited(self._now())
        self._raise_failed_load(decision)
        self._ends.decided(call, template)
        raise NoVariantFits(refusal(chain, decision), retry_after_s=max(1.0, self._line.expected_wait_s()))

    async def _read(self) -> None:
        await self._world.refresh_fresh()
        self._read_at_s = self._now()

    def _raise_failed_load(self, decision: Decision) -> None:
        """Raise Ollama's own error where a variant is barred because its load failed."""
        for verdict in decision.verdicts:
            if verdict.kind is VerdictKind.SPILLED and verdict.facts is not None:
                failed = self._residency.last_failure(verdict.facts.weights)
                if failed is not None:
                    raise LoadFailed(failed.message, status=failed.status)

    def _let_spill(self, call: Call, reason: str, first: Verdict, passed: Decided) -> Destination | Blocked:
        """Send the request on with the context that the chain names, for more of it spills more; else unchanged."""
        num_ctx, model = first.variant.num_ctx, first.variant.model
        if not isinstance(num_ctx, int) or call.request.num_ctx is not None or first.num_ctx != num_ctx:
            return self._destinations.passed_on(call, reason, model, decided=passed)
        options = LoadOptions(num_ctx=num_ctx)
        if not self._destinations.needs_tag(call, options):
            patch = Patch.of({"num_ctx": num_ctx}) if call.route.dialect == "ollama" else NO_PATCH
            return self._destinations.passed_on(call, reason, model, patch=patch, decided=passed)
        tag = self._derived.made(model, digest_of(first), options)
        if tag is None:
            return Blocked("tag", lambda: self._derived.ensure(model, digest_of(first), options))
        return self._destinations.passed_on(call, reason, model, tag=tag, decided=passed)


def _first_able(decision: Decision) -> Verdict | None:
    """The variant that may spill: the first of the chain that is installed and able."""
    able = (v for v in decision.verdicts if v.facts is not None and v.kind is not VerdictKind.INCAPABLE)
    return next(able, None)
