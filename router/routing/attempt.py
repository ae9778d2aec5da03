"""One attempt of a request: choose → enter the resident → rewrite → send.

These steps await nothing, so that a resident cannot be unloaded between the choice and the entry. If something must be
awaited, the attempt returns `Blocked`, and another one continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

from router.backend.backend import Backend
from router.backend.tickets import GoOn, Ticket
from router.backend.tracked import Tracked
from router.core.decision.lasting import is_short_of_memory
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from router.core.teams.payer import Payer
from router.errors import Busy, NoVariantFits, RouterError, UpstreamError
from router.http.client.response import Connection, UpstreamRequest
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.destination import Destination
from router.routing.destinations import digest_of
from router.routing.ends import Ends, decision_template
from router.routing.outcomes import Blocked, Outcomes
from router.routing.ruled import RuledChain
from router.routing.underway import Reply, Underway
from router.telemetry import Telemetry

Asking = tuple[Hashable, Callable[[], Decision], float, Payer]
"""What a request waits by: see `Waits.wait`."""

MAX_ATTEMPTS = 8
"""Times that one request may be sent and find its model gone before it is refused."""


class Attempts:
    """Carries out decisions for requests: the only class that uses both the core and the upstream connection."""

    def __init__(
        self, backend: Backend, chains: Chains, decisions: Decisions, wait_s: float, telemetry: Telemetry, ends: Ends
    ) -> None:
        self._backend = backend
        self._world = backend.world
        self._residents = backend.world.residents
        self._line = backend.line
        self._relay = backend.relay
        self._now = backend.now
        self._telemetry = telemetry
        self._chains = chains
        self._decisions = decisions
        self._destinations = decisions.destinations
        self._ends = ends
        self._outcomes = Outcomes(backend, chains, self._destinations, ends, wait_s)

    def attempt(self, call: Call, reply: Reply, connection: Connection | None = None) -> Underway | Blocked:
        """Send the request, or return what must be awaited first. Raises a RouterError if it is refused.

        `connection` was awaited for this request: it is used, or returned to the pool.
        """
        self._chains.begin(call)
        request: UpstreamRequest | None = None
        try:
            found = call.destination or self._destination(call)
            if isinstance(found, Blocked):
                return found
            request = call.upstream(found.body(call.request, call.body))
        finally:
            # Blocked again or refused: the connection that was awaited must not be lost to the pool.
            if connection is not None and request is None:
                self._relay.give_back(connection)
        return self._send(call, found, request, reply, connection)

    def _send(
        self,
        call: Call,
        destination: Destination,
        request: UpstreamRequest,
        reply: Reply,
        connection: Connection | None,
    ) -> Underway | Blocked:
        """Send it on a free connection. If there is none, it keeps its resident and destination, and awaits one."""
        underway = Underway(self._backend, self._ends, call, destination, reply)
        upstream = self._relay.open_now(request, underway.on_head, connection)
        if upstream is None:
            call.keep_destination(destination)
            return Blocked("connection", partial(self._connect, call))
        now_s = self._now()
        underway.sent(upstream, now_s)
        self._backend.derived.note_request(now_s)
        if not destination.weights:
            self._backend.contest.expect_loads()
        if destination.loads:
            self._world.loads.pass_on(underway, destination.loads)
        call.mark_sent(destination.served, destination.reason, now_s)
        if destination.chain is not None and len(destination.chain.variants) > 1:
            self._decisions.note_turn(call, destination)
        if destination.decided is not None:
            self._telemetry.emit(destination.decided.for_request(call.request_id, call.team))
        return underway

    async def _connect(self, call: Call) -> Connection:
        """Return a connection: one client's many requests must not take the last one from all others."""
        return await (self._relay.connect_reserved() if call.has_few() else self._relay.connect())

    def _destination(self, call: Call) -> Destination | Blocked:
        """Return where to send it: the cached destination of an equal request (fast path), or by a decision."""
        if not self._backend.answers:
            return Blocked("upstream", partial(self._reach, call))
        if call.attempts >= MAX_ATTEMPTS:
            text = f"{call.request.model}: gave up after {MAX_ATTEMPTS} attempts: the loaded models kept changing"
            raise NoVariantFits(text, retry_after_s=1.0)
        if call.resident is not None and call.choice is not None:
            return self._to_resident(call, *call.choice)
        if self._destinations.has_automatic and self._destinations.is_automatic(call):
            call.use_default_options()
        epoch = self._world.epoch.number
        known = call.expected if call.expected_in == epoch else self._decisions.known_destination(call)
        # One that its own load has let in is decided again, so that it is reported as loaded and not as resident.
        if known is None or known.chain is None or call.load_decision is not None:
            return self._decide(call)
        if known.is_short and self._is_outdated(call):
            return Blocked("reading", self._world.cards.look)
        tracked = self._residents.get(known.weights)
        if tracked is None:
            return self._decide(call)
        if not self._may_enter(call, tracked):
            call.expect(known, epoch)
            return self._turn(call, known.chain)
        # From here to the send nothing is awaited, so the resident cannot be unloaded in between.
        tracked.enter(call.team, self._now())
        call.enter(tracked, None, self._line.enter(tracked, call))
        return known

    def _decide(self, call: Call) -> Destination | Blocked:
        request = call.request
        if not request.has_model:
            return self._outcomes.pass_unchanged(call, "no model named")
        if self._decisions.lacks_facts(request.model, call.chain_rules):
            return Blocked("facts", lambda: self._decisions.read_facts(request.model, call.chain_rules))
        chain = self._decisions.chain_of(call)
        if chain is None and self._chains.is_remote(request.model, self._world.catalog):
            return self._outcomes.pass_to_remote(call)
        if chain is None:
            if call.is_looked_up or not self._chains.is_local(request.model):
                return self._outcomes.pass_not_installed(call)
            call.mark_looked_up()  # once per request: the model may have been installed since the last reading
            return Blocked("name", self._world.installed.look_up)
        if request.options_error:
            return self._outcomes.bad_option(call, chain)
        self._decisions.remember_chain(chain, call.team, call.front.rules if call.front is not None else None)
        if request.is_unload:
            return self._outcomes.unload(call, chain)
        return self._choose(call, chain)

    def _choose(self, call: Call, chain: RuledChain) -> Destination | Blocked:
        """Enter the chosen resident. If none is chosen, wait for a turn, or apply the `nothing_fits` rule."""
        decision = self._decisions.decide(call.request, chain, call.team, self._decisions.kept(call, chain))
        chosen = decision.chosen
        if chosen is not None and self._is_outdated(call) and self._is_short(decision):
            return Blocked("reading", self._world.cards.look)
        if call.may_decline and (unread := self._outcomes.decline(call, decision)) is not None:
            return unread
        if chosen is not None and chosen.kind is VerdictKind.PLACED:
            return self._outcomes.placed(call, chain, decision, chosen)
        if chosen is None and not self._line.is_switching:  # during a switch memory is in flux: wait for its end
            return self._outcomes.nothing_fits(call, chain, decision)
        if chosen is not None and chosen.resident is None and chosen.plan is not None:
            # Decided again after the load, the request would be reported as served by a resident.
            call.record_load(decision)
        resident = chosen.resident if chosen is not None else None
        tracked = self._residents.get(resident.weights) if resident is not None else None
        # None if it left ps after the snapshot was taken.
        if tracked is None or not self._may_enter(call, tracked):
            return self._turn(call, chain)
        tracked.enter(call.team, self._now())
        call.enter(tracked, (chain, decision), self._line.enter(tracked, call))
        return self._to_resident(call, chain, decision)

    def _is_outdated(self, call: Call) -> bool:
        """Return True if the probe was read before the request came. It is read for it once, and not after a wait."""
        return not (call.has_waited or self._world.cards.are_known_at(call.since_s))

    def _is_short(self, decision: Decision) -> bool:
        """Return True if a smaller variant would serve for want of memory that may be back since the last reading."""
        return decision.outcome is Outcome.FALLBACK and is_short_of_memory(decision, self._world.cards.gpus)

    def _may_enter(self, call: Call, tracked: Tracked) -> bool:
        """Return True unless it must wait. No resident is closed to the one that the queue has just let in to it."""
        if call.let_in_to and call.let_in_to == tracked.weights:
            return True
        return self._line.may_enter(tracked, call.team, needs_slot=call.needs_slot)

    def _turn(self, call: Call, chain: RuledChain) -> Blocked:
        asking = *self._decisions.to_wait_by(call, chain), call.since_s, call.paying()
        unused = call.let_in_to
        return Blocked("turn", partial(self._wait, call, asking, unused), partial(self._join, call, asking, unused))

    async def _wait(self, call: Call, asking: Asking, unused: str) -> str:
        """Let a request wait for its turn; return the weights that it was let in to."""
        try:
            return await self._line.wait(*asking, unused=unused, wait_s=call.wait_s, joined=call.act)
        except Busy as error:
            raise _refused(call, error) from None

    def _join(self, call: Call, asking: Asking, unused: str, go_on: GoOn) -> Ticket:
        """Let a request wait that has no task: see `Waits.join`."""
        try:
            ticket = self._line.join(*asking, go_on=go_on, unused=unused, wait_s=call.wait_s)
        except Busy as error:
            raise _refused(call, error) from None
        call.act()
        return ticket

    def _to_resident(self, call: Call, chain: RuledChain, decision: Decision) -> Destination | Blocked:
        """Return the destination of a request that has entered its resident; Blocked if its derived tag is missing."""
        chosen, tracked, tag = decision.chosen, call.resident, ""
        assert chosen is not None and tracked is not None
        options = tracked.sent_options
        if self._destinations.needs_tag(call, options):
            variant, digest = chosen.variant.model, digest_of(chosen)
            existing = self._backend.derived.existing(variant, digest, options)
            if existing is None:
                return Blocked("tag", lambda: self._backend.derived.ensure(variant, digest, options))
            tag = existing
        reported = (
            call.load_decision
            if call.load_decision is not None and _is_same_variant(call.load_decision, chosen)
            else decision
        )
        self._decisions.note_served(chain, decision)
        template, weights = decision_template(call, chain, reported), tracked.weights
        destination = self._destinations.to_resident(
            call, chain, chosen, weights, template.reason, options, tag, template, is_short=self._is_short(decision)
        )
        if reported is decision:  # an event that reports a load must not be cached for requests without one
            self._decisions.remember(call, decision, destination)
        return destination

    async def _reach(self, call: Call) -> None:
        """Check once more whether an Ollama that was down answers. Raises UpstreamError if not."""
        if self._backend.is_starting:  # a decision needs the first reading of all, and what was learned
            await self._backend.started()
        elif not self._world.is_up:
            await self._world.look_again()
        if not self._world.is_up:
            raise _refused(call, UpstreamError(self._world.why_away()))


def _refused(call: Call, error: RouterError) -> RouterError:
    """Return the error for a request that is refused before anything was done for it: its front may have others."""
    return call.front.declined(error.message) if call.front is not None and call.may_decline else error


def _is_same_variant(loading: Decision, chosen: Verdict) -> bool:
    return loading.chosen is not None and loading.chosen.variant == chosen.variant
