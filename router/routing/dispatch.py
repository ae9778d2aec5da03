"""The story of one request: choose → (wait) → enter the resident → rewrite → send → answer → leave.

`attempt` tells it once and awaits nothing, so that a resident cannot be unloaded between the choice and the entry.
Where something must be awaited it returns `Blocked`, and goes on from there when called again. Two drivers run it:

`start`     makes one attempt on behalf of the edge, without a task: most requests need no more.
`dispatch`  is the loop of a task: it awaits what blocks, and attempts again. It may be cancelled at any await (the
            client has left): whatever the request holds is given back there.
"""

from __future__ import annotations

import asyncio
from typing import cast

from router.backend.backend import Backend
from router.core.decision.chain import Chain
from router.core.decision.verdict import Decision, Verdict
from router.errors import NoVariantFits, RouterError, UpstreamError
from router.http.client.response import Connection
from router.routing.call import Answer, Call
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.destination import Destination
from router.routing.destinations import digest_of
from router.routing.ends import Ends, decided_by
from router.routing.outcomes import Blocked, Outcomes
from router.routing.underway import Reply, Underway
from router.telemetry import Telemetry

MOST_ATTEMPTS = 8
"""Residents that one request may enter and find gone, before it is refused."""


class Dispatcher:
    """The only one that acts on both the core and the adapters on behalf of a request."""

    def __init__(
        self, backend: Backend, chains: Chains, decisions: Decisions, wait_s: float, telemetry: Telemetry
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
        self._ends = Ends(backend.name, telemetry, backend.now)
        self._outcomes = Outcomes(backend, chains, self._destinations, self._ends, wait_s)

    # --- the drivers -------------------------------------------------------------------------------------------

    def start(self, call: Call, reply: Reply) -> Underway | Blocked | RouterError:
        """Attempt once. `reply` is called later, once, unless the request is blocked (`dispatch` it) or refused."""
        try:
            return self.attempt(call, reply)
        except RouterError as error:
            self._ends.failed(call, error)
            return error

    async def dispatch(self, call: Call, blocked: Blocked | None = None) -> Answer:
        """The answer to one inference request; `blocked` is what its first attempt has met.

        Raises a RouterError where there is no answer of the upstream's own.
        """
        try:
            while True:
                connection = await self._unblock(call, blocked) if blocked is not None else None
                found = await self._attempted(call, connection)
                if isinstance(found, Answer):
                    return found
                blocked = found
        except BaseException as error:
            self._backend.leave(call.leave())
            self._ends.failed(call, error)
            raise

    def abandon(self, call: Call) -> None:
        """Give back what a request holds whose task was cancelled before it began; else there is nothing to do."""
        if not call.is_ended:
            self._backend.leave(call.leave())
            self._ends.failed(call, asyncio.CancelledError())

    async def _unblock(self, call: Call, blocked: Blocked) -> Connection | None:
        """Await what blocks; a connection is for the next attempt."""
        call.wait(is_queued=blocked.why in ("turn", "room"))
        got = await blocked.until()
        call.go_on()
        if blocked.why == "turn":
            call.was_let_in(cast("str", got))
        return got if blocked.why == "connection" else None

    async def _attempted(self, call: Call, connection: Connection | None) -> Answer | Blocked:
        """One attempt, and the head of its answer. Raises the error that there is instead."""
        head: asyncio.Future[Answer | RouterError | None] = asyncio.get_running_loop().create_future()
        underway = self.attempt(call, head.set_result, connection)
        if isinstance(underway, Blocked):
            return underway
        try:
            found = await head
        except asyncio.CancelledError:
            came = None if head.cancelled() else head.result()  # the answer may have come in the same instant
            if isinstance(came, Answer):
                came.release("client_gone" if call.is_gone() else "shutdown")
            else:
                underway.give_up(is_gone=call.is_gone())
            raise
        if isinstance(found, RouterError):
            raise found
        return self.gone() if found is None else found

    def gone(self) -> Blocked:
        """What blocks a request whose variant has vanished at the upstream: the catalog must be read."""
        return Blocked("variant", self._world.installed.refresh)

    # --- the story ---------------------------------------------------------------------------------------------

    def attempt(self, call: Call, reply: Reply, connection: Connection | None = None) -> Underway | Blocked:
        """Send the request, or return what must be awaited first. Raises a RouterError where it is refused.

        `connection` is one that was awaited for it: it is used, or given back.
        """
        found: Destination | Blocked | None = None
        try:
            found = call.destination or self._destination(call)
        finally:
            if connection is not None and not isinstance(found, Destination):
                self._relay.give_back(connection)
        return found if isinstance(found, Blocked) else self._send(call, found, reply, connection)

    def _send(
        self, call: Call, destination: Destination, reply: Reply, connection: Connection | None
    ) -> Underway | Blocked:
        """Send it on a free connection; without one it keeps its resident and its destination."""
        request = call.upstream(destination.body(call.request, call.body))
        underway = Underway(self._backend, self._ends, call, destination, reply)
        upstream = self._relay.open_now(request, underway.on_head, connection)
        if upstream is None:
            call.bound_for(destination)
            return Blocked("connection", self._relay.connect)
        underway.sent(upstream)
        call.send_to(destination.served, destination.reason, self._now())
        if destination.decided is not None:
            self._telemetry.emit(destination.decided.of(call.request_id, call.team))
        return underway

    def _destination(self, call: Call) -> Destination | Blocked:
        """Where it goes: as an equal request before it, or by a decision."""
        if not self._world.is_up:
            return Blocked("upstream", self._reach)
        if call.attempts >= MOST_ATTEMPTS:
            text = f"{call.request.model}: gave up after {MOST_ATTEMPTS} attempts: the loaded models kept changing"
            raise NoVariantFits(text, retry_after_s=1.0)
        if call.held is not None and call.choice is not None:
            return self._to_resident(call, *call.choice)
        if self._destinations.has_automatic and self._destinations.is_automatic(call):
            call.without_options()
        known = self._decisions.known_destination(call)
        tracked = self._residents.get(known.weights) if known is not None else None
        if known is None or tracked is None or not self._line.may_enter(known.weights):
            return self._decide(call)
        self._residents.enter(known.weights)
        call.enter(tracked, None)
        return known

    def _decide(self, call: Call) -> Destination | Blocked:
        request = call.request
        if not request.has_model:
            return self._outcomes.not_ours(call, "no model named")
        chain = self._decisions.chain_of(call)
        if chain is None:
            if call.was_looked_up or not self._chains.is_local(request.model):
                return self._outcomes.not_ours(call, "not installed")
            call.look_up()  # it may have been installed a moment ago
            return Blocked("name", lambda: self._world.installed.look_up(request.model))
        if request.options_error:
            return self._outcomes.bad_option(call, chain)
        self._decisions.note(chain)
        if request.is_unload:
            return self._outcomes.unload(call, chain)
        return self._choose(call, chain)

    def _choose(self, call: Call, chain: Chain) -> Destination | Blocked:
        """Enter the resident that was chosen; where there is none, wait for a turn, or do what is configured."""
        decision = self._decisions.decide(call.request, chain)
        chosen = decision.chosen
        if chosen is None and not self._line.is_switching:
            return self._outcomes.nothing_fits(call, chain, decision)
        if chosen is not None and chosen.resident is None and chosen.plan is not None:
            call.made_by(decision)
        resident = chosen.resident if chosen is not None else None
        if resident is None or not (resident.weights == call.let_in or self._line.may_enter(resident.weights)):
            return self._turn(call, chain)
        tracked = self._residents.enter(resident.weights)
        if tracked is None:
            return self._turn(call, chain)
        call.enter(tracked, (chain, decision))
        return self._to_resident(call, chain, decision)

    def _turn(self, call: Call, chain: Chain) -> Blocked:
        key = self._decisions.key(call.request, chain)

        def decide() -> Decision:
            return self._decisions.decide_afresh(call.request, chain)

        return Blocked("turn", lambda: self._line.wait(key, decide, call.since_s))

    def _to_resident(self, call: Call, chain: Chain, decision: Decision) -> Destination | Blocked:
        """The destination of a request that holds its resident; Blocked until a derived tag that it needs is made."""
        chosen, tracked, tag = decision.chosen, call.held, ""
        assert chosen is not None and tracked is not None
        options = tracked.sent_options
        if self._destinations.needs_tag(call, options):
            variant, digest = chosen.variant.model, digest_of(chosen)
            made = self._backend.derived.made(variant, digest, options)
            if made is None:
                return Blocked("tag", lambda: self._backend.derived.ensure(variant, digest, options))
            tag = made
        reported = call.made if call.made is not None and _is_same_variant(call.made, chosen) else decision
        template = decided_by(call.request.model, chain, reported)
        weights, reason = tracked.weights, reported.reason
        destination = self._destinations.to_resident(call, chosen, weights, reason, options, tag, template)
        if reported is decision:
            self._decisions.remember(call, decision, destination)
        return destination

    async def _reach(self) -> None:
        """Ask an Ollama that is down once more. Raises UpstreamError."""
        await self._world.refresh()
        if not self._world.is_up:
            why = self._world.last_error
            raise UpstreamError(why if why.startswith("cannot reach") else f"cannot reach Ollama: {why}")


def _is_same_variant(made: Decision, chosen: Verdict) -> bool:
    return made.chosen is not None and made.chosen.variant == chosen.variant
