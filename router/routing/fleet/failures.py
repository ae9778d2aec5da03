"""Which failures of a place send a request to another one, and which places are left out after failures."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from router.config import FleetSection
from router.core.decision.fleet.breaker import Breakers
from router.core.decision.fleet.offer import Offer
from router.core.decision.fleet.retries import RetryBudget
from router.errors import Busy, LoadFailed, UpstreamError, UpstreamTimeout, UpstreamUnreached
from router.http.client.response import UpstreamResponse
from router.routing.call import Call
from router.telemetry import Notified, Telemetry

ANSWERED_BY_A_PROXY = frozenset((502, 503, 504))
"""Statuses that say that the request was not processed, whatever the body says."""

NOT_FOUND, SERVER_ERROR = 404, 500

_FAILED_LOAD = re.compile(
    rb"runner process|error loading model|failed to load model|unable to load model|out of memory|cudaMalloc|"
    rb"timed out waiting for llama runner|requires more system memory|unable to allocate",
    re.IGNORECASE,
)


class Failures:
    """Counts failures. `others_than` returns the names of the places that could take a call except those given."""

    def __init__(self, settings: FleetSection, telemetry: Telemetry, now: Callable[[], float]) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._now = now
        self.breakers = Breakers(settings.breaker_failures, settings.breaker_open_s)
        self.budget = RetryBudget(settings.retry_share)
        self._others: Callable[[Call, Collection[str]], bool] = lambda _call, _failed: False

    def ask(self, others: Callable[[Call, Collection[str]], bool]) -> None:
        """Set what knows whether another place than those that have failed could serve a call."""
        self._others = others

    def moves(self, call: Call, failure: Exception | UpstreamResponse, *, is_free: bool = False) -> bool:
        """Count that a request has failed where it is; return True if another place gets it.

        Nothing has been sent to its client by then. A request moves at most `fleet.retries` times, and unless it
        `is_free` only while retries are a small part of all requests.
        """
        visit = call.visit
        if visit is None or not visit.place:
            return False  # it is not at any place
        self._count(visit.place, call, failure)
        if not is_worth_another_place(failure) or visit.failures >= self._settings.retries:
            return False
        if not self._others(call, (*visit.failed, visit.place)):
            return False
        if not (is_free or self.budget.take(self._now())):
            return False
        visit.leave(has_failed=True)
        call.move()
        return True

    def _count(self, place: str, call: Call, failure: Exception | UpstreamResponse) -> None:
        """Count failures of a place as a whole, and answers that are errors of one model. Being busy is neither, nor is
        what the client itself has asked for wrongly: Ollama's answer to an option of a wrong type is a 500.
        """
        now_s = self._now()
        if isinstance(failure, UpstreamResponse):
            model = call.served if failure.status != 503 and not call.request.options_error else None
        else:
            model = "" if isinstance(failure, UpstreamError) else None
        if model is not None and self.breakers.failed(place, model, now_s):
            what = f"{model} on {place}" if model else place
            for_s = self.breakers.open_for_s(place, model, now_s)
            self._telemetry.emit(Notified(f"{what} is left out for {for_s:.0f} s after failures", level="warning"))

    def open_for_s(self, offer: Offer) -> float:
        """Return for how many seconds a place, or the model that it would serve, is left out; 0 if it is not."""
        now_s, chosen = self._now(), offer.chosen
        place_s = self.breakers.open_for_s(offer.place, "", now_s)
        return max(place_s, self.breakers.open_for_s(offer.place, chosen.variant.model, now_s) if chosen else 0.0)

    def begin(self, offer: Offer) -> None:
        """Note that a request goes to a place: after a breaker was open it is the trial."""
        chosen = offer.chosen
        self.begin_at(offer.place, chosen.variant.model if chosen is not None else "")

    def begin_at(self, place: str, model: str) -> None:
        """Note the same by the names of the place and of the model that is expected to serve ("" = none is)."""
        if self.breakers:
            self.breakers.begin(place, model, self._now())

    def answered(self, call: Call) -> None:
        """Count an answer that is no error of the server."""
        if self.breakers and call.visit is not None:
            self.breakers.succeeded(call.visit.place, call.served, self._now())


def is_worth_another_place(failure: Exception | UpstreamResponse) -> bool:
    """Return whether the same request may succeed elsewhere, and has not been worked on for long where it failed."""
    if isinstance(failure, UpstreamResponse):
        return failure.status in ANSWERED_BY_A_PROXY or _FAILED_LOAD.search(failure.peek()) is not None
    if isinstance(failure, UpstreamTimeout) and not isinstance(failure, UpstreamUnreached):
        return False  # it may still be at work there
    if isinstance(failure, LoadFailed):
        return failure.status >= SERVER_ERROR or failure.status == NOT_FOUND
    return isinstance(failure, (UpstreamError, Busy))
