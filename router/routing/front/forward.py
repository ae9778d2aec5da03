"""A request that was sent to a node, until the head of its answer arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache

from router.core.nodes.declined import STATUS as DECLINED
from router.core.ollama.listings import SERVER_ERROR
from router.errors import NoNodeAnswers, UpstreamError, UpstreamTimeout, UpstreamUnreached
from router.http.client.response import UpstreamResponse
from router.routing.answer import Answer, Released
from router.routing.call import Call
from router.routing.destination import headers_of
from router.routing.ends import Ends
from router.routing.fleet.failures import Failures
from router.routing.front.going import Going
from router.routing.front.own import UnderWay
from router.routing.underway import Reply
from router.telemetry import Decided

UNAUTHORIZED, UNAVAILABLE = 401, 503
FALLBACK = "fallback: "
MOST_CHARACTERS = 640
"""What a node says in a header is kept up to this length."""

Out = Callable[[Going, str], None]
"""Notes that a node cannot be used, and why."""


class Forward:
    """A request under way. `reply` is called once, not after `give_up`: with the answer, the error, or None if it is to
    go to another node.
    """

    __slots__ = ("_call", "_ends", "_failures", "_going", "_now", "_out", "_own", "_reply", "_upstream")

    def __init__(
        self,
        call: Call,
        going: Going,
        reply: Reply,
        ends: Ends,
        failures: Failures,
        own: UnderWay,
        out: Out,
        now: Callable[[], float],
    ) -> None:
        self._call, self._going, self._reply = call, going, reply
        self._ends, self._failures, self._own, self._out, self._now = ends, failures, own, out, now
        self._upstream: UpstreamResponse | None = None

    def sent(self, upstream: UpstreamResponse) -> None:
        """Set the response in which the answer will arrive."""
        self._upstream = upstream

    def on_head(self) -> None:
        """Handle the head of the answer, or that there will be none. Never raises: a connection calls it."""
        upstream = self._upstream
        assert upstream is not None
        try:
            came = self._came(upstream)
        except Exception as error:
            upstream.close()
            self._leave()
            if isinstance(error, UpstreamError) and self._failures.moves(self._call, error, is_free=is_cut_off(error)):
                self._reply(None)
            else:
                self._reply(self._ends.fault(self._call, error, UpstreamError))
            return
        self._reply(came)

    def _came(self, upstream: UpstreamResponse) -> Answer | None:
        """Return the answer; None if the request goes to another node. Raises UpstreamError if there is none."""
        if not upstream.status:
            upstream.raise_error()
        if upstream.status == UNAUTHORIZED:  # a fault of this fleet, and none of the client's
            self._out(self._going, "it does not accept the key of this front (401)")
            raise NoNodeAnswers(f"{self._going.node.name} does not accept the key of this front")
        if self._is_to_go_on(upstream):
            upstream.close()
            self._leave()
            return None
        if upstream.status < SERVER_ERROR:
            self._failures.answered(self._call)
        return self._answer(upstream)

    def _is_to_go_on(self, upstream: UpstreamResponse) -> bool:
        if upstream.status == DECLINED:
            return _declined(self._call, self._going)
        if self._going.is_final and upstream.status == UNAVAILABLE:
            return False  # nothing fits, or its queue is full: it was to do what it can
        return upstream.status >= SERVER_ERROR and self._failures.moves(self._call, upstream)

    def _answer(self, upstream: UpstreamResponse) -> Answer:
        call, going, by_name = self._call, self._going, upstream.by_name
        now_s = self._now()
        served = _text(by_name.get(b"x-router-model", b"")) or going.model or call.request.model
        reason = _reason(call, _text(by_name.get(b"x-router-reason", b"")))
        there_s = _whole(by_name.get(b"x-router-queue-ms", b"")) / 1000
        call.note_served(served, reason, call.queue_s + there_s)
        model, tries = call.request.model, call.tries
        headers, lines = headers_of(model, served, reason, int(call.queue_s * 1000), tries, going.node.name)
        if position := by_name.get(b"x-router-position"):
            headers, lines = [*headers, (b"x-router-position", position)], b""
        if reason:
            chain = going.chain.name if going.chain is not None else ""
            self._ends.report_decision(call, decided(model, served, reason, chain))
        ttft_s = now_s - call.since_s

        def on_release(released: Released) -> None:
            self._leave()
            self._ends.report_end(call, released, upstream.status, ttft_s)

        return Answer(
            upstream.status, headers, upstream, lines=lines, limits_left=call.limits_left, on_release=on_release
        )

    def _leave(self) -> None:
        self._own.leave(self._call)

    def give_up(self, *, is_gone: bool = True) -> None:
        """Cancel the request at the node: its client has left, or the router stops."""
        if self._upstream is not None:
            self._upstream.close()
        self._leave()
        self._call.give_up(is_gone=is_gone)
        self._ends.report_failure(self._call, asyncio.CancelledError())


def is_cut_off(error: UpstreamError) -> bool:
    """Return whether a node is not there: what it had goes on elsewhere, all of it, since that happens once."""
    return isinstance(error, UpstreamUnreached) or not isinstance(error, UpstreamTimeout)


def _declined(call: Call, going: Going) -> bool:
    """Note that a node has declined a request before it has changed anything; it goes on to the next one."""
    assert call.visit is not None
    if going.is_final and going.node.name in call.visit.failed:
        raise NoNodeAnswers(f"{going.node.name} has declined the request twice, and no other node can serve it")
    call.visit.decline()
    call.move()
    return True


@lru_cache(maxsize=256)
def decided(requested: str, served: str, reason: str, chain: str) -> Decided:
    """Return the template of the event for what a node has decided, by what its answer says; chain "" = none."""
    outcome = "fallback" if reason.startswith("fallback") else "exact"
    if not chain or reason.startswith(("passthrough", "allow_partial")):
        outcome = "passthrough"
    cause = reason if reason in ("resident", "fits") else outcome
    return Decided("", "", requested, served, reason, outcome, chain, cause)


def _reason(call: Call, said: str) -> str:
    """Return why a variant serves: what its node says, or for a fallback what all nodes say of the first variant."""
    words = call.passed_over.words
    return f"{FALLBACK}{words}" if words and said.startswith(FALLBACK) else said


def _text(value: bytes) -> str:
    return value[:MOST_CHARACTERS].decode("latin-1")


def _whole(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) < 12 else 0
