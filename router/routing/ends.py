"""Reports of requests: the decision, and the end, which is reported exactly once per request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from router.core.decision.chain import Chain
from router.core.decision.verdict import Decision, Outcome
from router.errors import LoadFailed, Misdirected, RouterError, UpstreamError
from router.http.client.response import UpstreamResponse
from router.routing.answer import Released
from router.routing.call import Call
from router.telemetry import Decided, Finished, Telemetry

logger = logging.getLogger("router.routing")


class Elsewhere(Protocol):
    """What knows of other backends."""

    def moves(self, call: Call, failure: Exception | UpstreamResponse, /) -> bool:
        """Count that a request has failed on its backend; return True if another one gets it."""


class NowhereElse:
    """The only backend has no others."""

    def moves(self, _call: Call, _failure: Exception | UpstreamResponse) -> bool:
        """Return False."""
        return False


NOWHERE_ELSE = NowhereElse()


class Ends:
    """Emits `Decided` and `Finished` for the requests of one backend; `now` is the loop's time.

    `elsewhere` is asked about each failure before it is reported.
    """

    def __init__(
        self, backend: str, telemetry: Telemetry, now: Callable[[], float], elsewhere: Elsewhere = NOWHERE_ELSE
    ) -> None:
        self.elsewhere = elsewhere
        self._backend = backend
        self._telemetry = telemetry
        self._now = now

    def report_decision(self, call: Call, template: Decided) -> None:
        """Report the decision of `template` for this call."""
        self._telemetry.emit(template.for_request(call.request_id, call.team))

    def report_failure(self, call: Call, error: BaseException) -> None:
        """Report that the request ends without an answer because of `error`."""
        outcome, status, phase = _classify(call, error)
        text = str(error) or ("the router is shutting down" if outcome == "shutdown" else "")
        self.report_end(call, Released(outcome, phase=phase, error=text), status)

    def fault(self, call: Call, error: Exception, expected: type[RouterError] = RouterError) -> RouterError:
        """Report that the request fails; return the error for its client. One that was not `expected` is our fault.

        The error comes without its traceback, whose frames refer to the request, which is told the error.
        """
        if not isinstance(error, expected):
            logger.exception("request %s failed", call.request_id)
        self.report_failure(call, error)
        return error.with_traceback(None) if isinstance(error, expected) else RouterError("internal error")

    def report_end(self, call: Call, released: Released, status: int, ttft_s: float | None = None) -> None:
        """Report the end of the request, unless it was reported before."""
        now_s = self._now()
        if not call.end(now_s):
            return
        if call.on_end is not None:
            call.on_end(call, released, status)
        self._telemetry.emit(
            Finished(  # by position: by name it takes three times as long
                call.request_id,
                call.team,
                call.route.pattern,
                status,
                call.request.model,
                call.served or call.request.model,
                released.outcome,
                call.queue_s,
                released.sent_bytes,
                now_s - call.since_s,
                ttft_s if call.request.stream else None,
                released.tokens_in,
                released.tokens_out,
                call.reason,
                "POST",
                self._backend,
                call.route.kind,
                call.trace_id,
                released.phase,
                released.error,
                call.client,
                call.identity.key_id,
                call.card_s,
                call.payer.load_s if call.payer is not None else 0.0,
                call.vram_bytes,
                call.span,
                call.attempts > 0,
            )
        )


def _classify(call: Call, error: BaseException) -> tuple[str, int, str]:
    """Return outcome, status, and the phase in which the client left ("" if it did not)."""
    if isinstance(error, asyncio.CancelledError):
        return ("client_gone", 499, call.phase) if call.is_gone() else ("shutdown", 503, "")
    if isinstance(error, Misdirected):
        return "declined", error.status, ""
    if isinstance(error, RouterError):
        is_upstream = isinstance(error, (UpstreamError, LoadFailed))
        return "upstream_error" if is_upstream else "shed", error.status, ""
    return "failed", 500, ""


def decision_template(call: Call, chain: Chain, decision: Decision) -> Decided:
    """Return the template of the event that reports `decision` on a call."""
    requested, chosen = call.request.model, decision.chosen.variant.model if decision.chosen else ""
    reason, cause = decision.reason_with(call.passed_over.words), ""
    if decision.outcome is Outcome.FALLBACK and call.passed_over.cause:
        cause = call.passed_over.cause
    elif decision.verdicts:
        cause = decision.verdicts[0].kind.name.lower()
    below = decision.below_best
    return Decided("", "", requested, chosen, reason, decision.outcome.value, chain.name, cause, decision, below)


def passed_on_template(rule: str, model: str, template: Decided) -> Decided:
    """Return the template for a request that no variant can serve, and that `rule` passes on to `model`."""
    return msgspec.structs.replace(template, chosen=model, reason=rule, outcome=Outcome.PASSTHROUGH.value)
