"""The story of one request: snapshot → choose → (wait for a switch) → enter the resident → rewrite → relay → release.

`Dispatcher.dispatch` may be cancelled at any await (the client has left): whatever it holds is given back there. What
it returns is an `Answer` that the edge sends; `Answer.release` gives everything back on every exit path.

Between `choose` and `World.enter` nothing is awaited, so a resident that was chosen cannot be unloaded in between.

`Dispatcher.at_once` tells the same story where nothing has to be waited for: the decision is settled, the resident is
open, a connection is free. It is remembered as `Ready` and costs a look-up; any other request takes the long way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from router.backend.backend import Backend
from router.backend.residents import Tracked
from router.core.decision.chain import Chain
from router.core.decision.policy import Decision, Outcome, Verdict, VerdictKind
from router.core.decision.report import refusal
from router.core.ollama.names import key_of
from router.core.ollama.runner import RunnerOptions
from router.core.payload.read import InferenceRequest, Patch, rewrite
from router.errors import LoadFailed, ModelNotFound, NoVariantFits, RouterError, UpstreamError
from router.http.client.response import UpstreamResponse
from router.routing.call import Answer, Call, Released, router_headers, spelled
from router.routing.chains import Chains
from router.routing.decisions import NO_PATCH, Decisions, Ready, digest_of, dropped, patch_of, told
from router.telemetry import Decided, Finished, Telemetry

MOST_ATTEMPTS = 8
"""Residents that one request may enter and find gone, before it is refused."""

RETRY_S = 1.0  # how often a request that waits for room looks again

Reply = Callable[[Answer | RouterError | None], None]


class Dispatcher:
    """The only caller of both the core and the adapters on behalf of a request."""

    def __init__(
        self, backend: Backend, chains: Chains, decisions: Decisions, wait_s: float, telemetry: Telemetry
    ) -> None:
        self.decisions = decisions
        self._name = backend.name
        self._world = backend.world
        self._residents = backend.world.residents
        self._line = backend.line
        self._residency = backend.residency
        self._keepalive = backend.keepalive
        self._derived = backend.derived
        self._relay = backend.relay
        self._chains = chains
        self._wait_s = wait_s
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time
        self._refused_at_s = -1.0

    # --- the story ---------------------------------------------------------------------------------------------

    async def dispatch(self, call: Call) -> Answer:
        """The answer to one inference request. Raises a RouterError where there is none of the upstream's own."""
        started_s = self._now()
        try:
            return await self._answer_to(call)
        except BaseException as error:
            self._failed(call, error, started_s)
            raise

    async def _answer_to(self, call: Call) -> Answer:
        if not self._world.is_up:
            await self._world.refresh()
            if not self._world.is_up:
                why = self._world.last_error
                raise UpstreamError(why if why.startswith("cannot reach") else f"cannot reach Ollama: {why}")
        if not call.request.has_model:
            return await self._pass(call, "passthrough: no model named")
        if self.decisions.is_automatic(call):
            call.request = msgspec.structs.replace(call.request, is_automatic=True)
        chain = self.decisions.chain_of(call)
        if chain is None and self._chains.is_local(call.request.model):
            await self._world.installed.look_up(call.request.model)
            chain = self.decisions.chain_of(call)
        if chain is None:
            return await self._pass(call, "passthrough: not installed")
        if call.request.options_error:
            return await self._pass(call, f"passthrough: {call.request.options_error}", self._installed(call, chain))
        self.decisions.note(chain)
        if call.request.is_unload:
            return await self._unload(call, chain)
        return await self._serve(call, chain)

    async def _serve(self, call: Call, chain: Chain) -> Answer:
        started_s = self._now()
        attempts, let_in, made = 0, "", None  # the decision that made the model resident, if one did
        while attempts < MOST_ATTEMPTS:
            decision = self.decisions.decide(call.request, chain)
            chosen = decision.chosen
            if chosen is None and not self._line.is_switching:
                answer = await self._without(call, chain, decision, started_s)
                if answer is not None:
                    return answer
                continue
            resident = chosen.resident if chosen is not None else None
            if chosen is not None and resident is None and chosen.plan is not None:
                made = decision
            if resident is None or not (resident.weights == let_in or self._line.may_enter(resident.weights)):
                let_in = await self._wait(call, chain, started_s)
                continue
            attempts, let_in = attempts + 1, ""
            tracked = self._residents.enter(resident.weights)
            if tracked is not None and chosen is not None:
                if made is not None and made.chosen is not None and made.chosen.variant == chosen.variant:
                    decision = made
                self._decided(call, chain, decision)
                answer = await self._relay_to(call, decision.reason, chosen, tracked, started_s)
                if answer is not None:
                    if attempts > 1:
                        answer.headers.append((b"x-router-attempts", b"%d" % attempts))
                    return answer
        raise NoVariantFits(f"{call.request.model}: the card changed faster than it could be used", retry_after_s=1.0)

    async def _wait(self, call: Call, chain: Chain, since_s: float) -> str:
        """Stand in line until the request may be decided anew; the weights that it was let in to."""
        key = self.decisions.key(call.request, chain)
        call.phase = "queued"
        let_in = await self._line.wait(key, lambda: self.decisions.decide_anew(call.request, chain), since_s)
        call.phase = "before_answer"
        return let_in

    def at_once(self, call: Call, reply: Reply) -> Underway | None:
        """The same for the usual request, without waiting for anything: it is sent now, and `reply` called later, once.

        None: `dispatch` it. `reply` gets the answer when its head is there, or the error that there is instead, or None
        when the request is to be dispatched after all. It is not called any more after `Underway.give_up`.
        """
        ready = self.decisions.ready_for(call)
        if ready is None or not self._line.may_enter(ready.weights):
            return None
        tracked = self._residents.get(ready.weights)
        if tracked is None:
            return None
        request = call.request
        body = rewrite(
            call.body,
            model=ready.name,
            options=ready.patch,
            drop=dropped(call),
            members=request.members,
            plain=request.plain,
        )
        underway = Underway(self, call, ready, tracked, self._now(), reply)
        underway.upstream = self._relay.open_now(call.upstream(body), underway.on_head)
        if underway.upstream is None:
            return None
        self._residents.enter(ready.weights)
        call.served, call.reason = ready.chosen.variant.model, ready.reason
        self._telemetry.emit(Decided(call.request_id, call.team, *ready.told))  # type: ignore[arg-type]
        return underway

    async def _relay_to(
        self, call: Call, reason: str, chosen: Verdict, tracked: Tracked, since_s: float
    ) -> Answer | None:
        """Send the request to the resident that it has entered; None when the model is gone upstream after all."""
        call.served, call.reason, call.queue_s = chosen.variant.model, reason, self._now() - since_s
        try:
            body, rename = await self._body(call, chosen, tracked)
            upstream = await self._relay.open(call.upstream(body))
        except BaseException:
            self._residents.leave(tracked, self._now())
            raise
        headers = router_headers(call.request.model, call.served, reason, call.queue_s, self._name)
        answer = self._answer(call, tracked, upstream, headers, rename, since_s)
        if answer is None:
            await self._world.installed.refresh()
        return answer

    def _answer(
        self,
        call: Call,
        tracked: Tracked,
        upstream: UpstreamResponse,
        headers: list[tuple[bytes, bytes]],
        rename: tuple[bytes, bytes] | None,
        since_s: float,
    ) -> Answer | None:
        """The answer whose head has come; None, with all given back, when the model is gone upstream."""
        if upstream.status == 404 and (rename or key_of(call.served) != key_of(call.request.model)):
            upstream.close()  # deleted behind our back, the variant or its derived tag: the chain decides anew
            self._residents.leave(tracked, self._now())
            self._derived.forget(call.served)
            return None
        self._keepalive.asked(tracked, call.request.keep_alive_s)
        ttft_s = self._now() - since_s

        def on_release(released: Released) -> None:
            self._residents.leave(tracked, self._now())
            self._finished(call, released, since_s, upstream.status, ttft_s)

        return Answer(upstream.status, headers, upstream, rename=rename, on_release=on_release)

    async def _body(self, call: Call, chosen: Verdict, tracked: Tracked) -> tuple[bytes, tuple[bytes, bytes] | None]:
        """The body to send: the chosen model's name and exactly the options of its runner."""
        options = tracked.sent_options
        name = spelled(call.request.model, chosen.variant.model)
        if self.decisions.needs_tag(call, options):
            name = await self._derived.ensure(chosen.variant.model, digest_of(chosen), options)
        patch = patch_of(options) if call.route.dialect == "ollama" else NO_PATCH
        body = rewrite(call.body, model=name, options=patch, drop=dropped(call), members=call.request.members)
        return body, self.decisions.rename(call, chosen, name)

    async def make_resident(self, request: InferenceRequest, chain: Chain) -> None:
        """Load what would serve `request`, without a request to relay (preload, idle upgrades)."""
        for _ in range(MOST_ATTEMPTS):
            chosen = self.decisions.decide(request, chain).chosen
            if chosen is None or chosen.resident is not None:
                return
            key = self.decisions.key(request, chain)
            await self._line.wait(key, lambda: self.decisions.decide_anew(request, chain), self._now())

    # --- requests that no variant can serve, or that need none ---------------------------------------------------

    async def _without(self, call: Call, chain: Chain, decision: Decision, started_s: float) -> Answer | None:
        """Nothing fits: refuse, wait and look again (None), let it spill, or pass it on; as configured."""
        if decision.outcome is Outcome.PASSTHROUGH:
            self._decided(call, chain, decision)
            return await self._pass(call, "passthrough: no GPU")
        if not self._is_fresh(started_s):
            await self._world.refresh_fresh()  # nobody is refused by what was true a second ago
            self._refused_at_s = self._now()
            return None
        rule = call.nothing_fits or self._chains.rule(call.request.model).nothing_fits
        if rule in ("passthrough", "allow_partial"):
            reason, first = f"{rule}: {refusal(chain, decision)}", _first_installed(decision)
            self._decided(call, chain, decision, rule, first)
            if rule == "allow_partial" and first is not None:
                return await self._let_spill(call, reason, first)
            return await self._pass(call, reason, first.variant.model if first is not None else None)
        if rule == "wait" and self._now() - started_s < self._wait_s:
            call.phase = "queued"
            await asyncio.sleep(RETRY_S)
            call.phase = "before_answer"
            return None
        call.queue_s = self._now() - started_s
        for verdict in decision.verdicts:
            failed = self._residency.last_failure(verdict.facts.weights) if verdict.facts is not None else None
            if failed is not None and verdict.kind is VerdictKind.SPILLED:  # barred by it, that is
                raise LoadFailed(failed.message, status=failed.status)
        self._decided(call, chain, decision)
        raise NoVariantFits(refusal(chain, decision), retry_after_s=max(1.0, self._line.expected_wait_s()))

    async def _unload(self, call: Call, chain: Chain) -> Answer:
        """An unload goes to the variant that is loaded, and never loads anything."""
        for variant in chain.variants:
            tracked = self._residents.get(self._world.installed.weights_of(variant.model))
            if tracked is not None:
                self._keepalive.asked(tracked, 0.0)
                self._residents.go(tracked, self._now())
                return await self._pass(call, "unload", variant.model)
        return await self._pass(call, "unload: not loaded", chain.variants[0].model)

    async def _let_spill(self, call: Call, reason: str, first: Verdict) -> Answer:
        """Send the request on with the context that the chain names, for more of it spills more; else as it is."""
        num_ctx, model = first.variant.num_ctx, first.variant.model
        if not isinstance(num_ctx, int) or call.request.num_ctx is not None or first.num_ctx != num_ctx:
            return await self._pass(call, reason, model)
        options = RunnerOptions(num_ctx=num_ctx)
        if not self.decisions.needs_tag(call, options):
            patch = Patch.of({"num_ctx": num_ctx}) if call.route.dialect == "ollama" else NO_PATCH
            return await self._pass(call, reason, model, patch)
        for _ in range(2):
            tag = await self._derived.ensure(model, digest_of(first), options)
            answer = await self._pass(call, reason, model, tag=tag)
            if answer.status != 404 or answer.upstream is None:
                answer.rename = self.decisions.rename(call, first, tag)
                return answer
            answer.upstream.close()
            self._derived.forget(model)  # somebody has removed its tag
        raise ModelNotFound(f"model '{model}' not found")

    async def _pass(
        self, call: Call, reason: str, model: str | None = None, patch: Patch = NO_PATCH, tag: str = ""
    ) -> Answer:
        """Send the request on as it is, but for the name where a chain's variant stands for it."""
        name = call.served = spelled(call.request.model, model) if model else call.request.model
        body, call.reason = call.body, reason
        if call.request.has_model:
            body = rewrite(body, model=tag or name, options=patch, members=call.request.members)
        started_s = self._now()
        upstream = await self._relay.open(call.upstream(body))
        ttft_s = self._now() - started_s

        def on_release(released: Released) -> None:
            self._finished(call, released, started_s, upstream.status, ttft_s)

        headers = router_headers(call.request.model, name, reason, 0.0, self._name)
        return Answer(upstream.status, headers, upstream, on_release=on_release)

    def _is_fresh(self, since_s: float) -> bool:
        """True when the world has been read for a refusal since the request came."""
        return self._refused_at_s >= since_s

    def _installed(self, call: Call, chain: Chain) -> str | None:
        """The first installed variant of a chain whose name is no model; None where it is one."""
        if key_of(call.request.model) in self._world.catalog:
            return None
        return next(iter(chain.installed(self._world.catalog)), None)

    def _decided(
        self, call: Call, chain: Chain, decision: Decision, rule: str = "", passed_to: Verdict | None = None
    ) -> None:
        """Tell the decision; with a `rule`, that nothing fitted and to what the request was passed on by it."""
        facts = told(call.request.model, chain, decision)
        if rule:
            model = passed_to.variant.model if passed_to is not None else call.request.model
            facts = (call.request.model, model, rule, Outcome.PASSTHROUGH.value, *facts[4:])
        self._telemetry.emit(Decided(call.request_id, call.team, *facts))  # type: ignore[arg-type]

    def _failed(self, call: Call, error: BaseException, since_s: float) -> None:
        """The request has no answer: say how it ended."""
        phase = ""
        if isinstance(error, asyncio.CancelledError) and call.is_gone():
            outcome, status, phase = "client_gone", 499, call.phase
        elif isinstance(error, asyncio.CancelledError):
            outcome, status = "shutdown", 503
        elif isinstance(error, RouterError):
            outcome = "upstream_error" if isinstance(error, (UpstreamError, LoadFailed)) else "shed"
            status = error.status
        else:
            outcome, status = "failed", 500
        if call.phase == "queued":
            call.queue_s = self._now() - since_s
        text = str(error) or ("the router is shutting down" if outcome == "shutdown" else "")
        self._finished(call, Released(outcome, phase=phase, error=text), since_s, status)

    def _finished(
        self, call: Call, released: Released, since_s: float, status: int, ttft_s: float | None = None
    ) -> None:
        self._telemetry.emit(
            Finished(
                call.request_id,
                call.team,
                call.route.pattern,
                status,
                call.request.model,
                call.served or call.request.model,
                released.outcome,
                call.queue_s,
                released.sent_bytes,
                self._now() - since_s,
                ttft_s if call.request.stream else None,
                released.tokens_in,
                released.tokens_out,
                call.reason,
                backend=self._name,
                operation=call.route.kind,
                phase=released.phase,
                error=released.error,
            )
        )


class Underway:
    """A request that `at_once` has sent, until the head of its answer is there."""

    __slots__ = ("_call", "_dispatcher", "_ready", "_reply", "_since_s", "_tracked", "upstream")

    def __init__(
        self, dispatcher: Dispatcher, call: Call, ready: Ready, tracked: Tracked, since_s: float, reply: Reply
    ) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._ready = ready
        self._tracked = tracked
        self._since_s = since_s
        self._reply = reply
        self.upstream: UpstreamResponse | None = None

    def on_head(self) -> None:
        """The head of the answer is there, or there will be none."""
        upstream, ready, of = self.upstream, self._ready, self._dispatcher
        assert upstream is not None
        if upstream.status:
            answer = of._answer(self._call, self._tracked, upstream, ready.headers, ready.rename, self._since_s)
            if answer is not None:
                answer.lines = ready.lines
            self._reply(answer)
            return
        try:
            upstream.raise_error()
        except UpstreamError as error:
            self._end(error)
            self._reply(error)

    def give_up(self, *, is_gone: bool = True) -> None:
        """The client has left, or there is no more time: cancel it at the upstream and give everything back."""
        if self.upstream is not None:
            self.upstream.close()
        self._call.is_gone = lambda: is_gone
        self._end(asyncio.CancelledError())

    def _end(self, error: BaseException) -> None:
        self._dispatcher._residents.leave(self._tracked, self._dispatcher._now())
        self._dispatcher._failed(self._call, error, self._since_s)


def _first_installed(decision: Decision) -> Verdict | None:
    """The variant that may spill: the first of the chain that is installed and able."""
    able = (v for v in decision.verdicts if v.facts is not None and v.kind is not VerdictKind.INCAPABLE)
    return next(able, None)
