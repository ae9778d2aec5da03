"""Requests and switches as spans: plain data, made from events after the fact. No prompt, key or text of an error.

A request is a span of its own with the waits in it as children. A switch is a span in a trace of its own, because many
requests may have waited for it: each of them links to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from router.core.masking import masked
from router.telemetry import semconv
from router.telemetry.events import Decided, Finished, Spilled, Switched
from router.telemetry.ids import SPAN_DIGITS, TRACE_DIGITS, random_digits

Value = str | int | float
MOST_SWITCHES = 256
"""Switches that later requests may still link to."""

_REQUEST_ID, _QUEUE_S = f"{semconv.OWN}request_id", f"{semconv.OWN}queue_s"

SLACK_S = 0.25
"""A request's end is reported in a batch, so what it says of its begin is late by a moment."""


class Link(NamedTuple):
    """A span in another trace."""

    trace_id: str
    span_id: str


class Shared:
    """Attributes that many spans have in common. They are one object, so that they need to be encoded only once."""

    __slots__ = ("attributes",)

    def __init__(self, attributes: Mapping[str, Value]) -> None:
        self.attributes = attributes


NOTHING = Shared({})


class Moment(NamedTuple):
    """Something that happened within a span, at Unix time `at_s`."""

    name: str
    at_s: float
    shared: Shared


class Span(msgspec.Struct, frozen=True):
    """A span from `begin_s` to `end_s` (Unix times). Ids are in hexadecimal; `error` is "" if it ended well.

    Its attributes are `attributes` and those that it shares with others.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    begin_s: float
    end_s: float
    kind: Literal["server", "internal"] = "internal"
    attributes: Mapping[str, Value] = {}
    links: tuple[Link, ...] = ()
    moments: tuple[Moment, ...] = ()
    error: str = ""
    shared: Shared = NOTHING


class Noted(NamedTuple):
    """An event of which spans are made, and the Unix time at which it was reported."""

    at_s: float
    event: Finished | Switched | Spilled
    decided: Decided | None = None


class _Switch(NamedTuple):
    link: Link
    backend: str
    model: str
    request_id: str
    end_s: float


class SpanMaker:
    """Makes the spans of events, which come in their order."""

    def __init__(self) -> None:
        self._switches: deque[_Switch] = deque(maxlen=MOST_SWITCHES)
        self._trace_ids, self._span_ids = random_digits(TRACE_DIGITS), random_digits(SPAN_DIGITS)

    def spans_of(self, noted: Noted) -> list[Span]:
        """Return the spans of one event: of a request itself and the waits in it, or of a switch."""
        event = noted.event
        if isinstance(event, Finished):
            return self._of_request(event, noted.at_s, noted.decided)
        return [self._of_switch(event, noted.at_s)] if isinstance(event, Switched) else []

    def _of_switch(self, event: Switched, at_s: float) -> Span:
        link = Link(next(self._trace_ids), next(self._span_ids))
        self._switches.append(_Switch(link, event.backend, event.model, event.request_id, at_s))
        facts = {
            semconv.PROVIDER: "ollama",
            semconv.REQUEST_MODEL: event.model,
            f"{semconv.OWN}backend": event.backend,
            f"{semconv.OWN}team": event.team,
            f"{semconv.OWN}evicted": ", ".join(event.evicted),
            f"{semconv.OWN}vram_bytes": event.vram_bytes,
            f"{semconv.OWN}request_id": event.request_id,
        }
        error = "" if event.phase == "finished" else event.phase
        began_s = at_s - (event.duration_s or 0.0)
        return Span(f"load {_masked(event.model)}", *link, "", began_s, at_s, attributes=_known(facts), error=error)

    def _of_request(self, event: Finished, at_s: float, decided: Decided | None) -> list[Span]:
        context = event.span
        if context is None:
            return []
        began_s = at_s - (event.duration_s or 0.0)
        sent_s = min(at_s, began_s + event.queue_s)
        links = self._waited_for(event, decided, began_s, sent_s) if event.queue_s else ()
        whole = Span(
            _name(event.operation, event.requested),
            context.trace_id,
            context.span_id,
            context.parent_id,
            began_s,
            at_s,
            "server",
            _own_facts(event),
            links,
            () if decided is None else (Moment("decision", sent_s, _decision_of(decided)),),
            _error_type(event.status, event.outcome),
            _facts_of(event, decided.chain if decided is not None else ""),
        )
        return [whole, *self._parts(whole, event, sent_s)]

    def _parts(self, whole: Span, event: Finished, sent_s: float) -> list[Span]:
        """Return the waits within a request: for its turn and its model, for the first byte, and for the rest."""
        found, at_s = [], whole.begin_s
        for name, end_s in _ends_of_parts(whole, event, sent_s):
            if end_s > at_s:
                found.append(Span(name, whole.trace_id, next(self._span_ids), whole.span_id, at_s, end_s))
                at_s = end_s
        return found

    def _waited_for(self, event: Finished, decided: Decided | None, began_s: float, sent_s: float) -> tuple[Link, ...]:
        """Return the switches that a request has waited for: its own, and those of its model that ended meanwhile."""
        names = {event.variant}
        chosen = decided.decision.chosen if decided is not None and decided.decision is not None else None
        if chosen is not None and chosen.facts is not None:
            names.add(chosen.facts.name)
        return tuple(
            switch.link
            for switch in self._switches
            if (switch.request_id == event.request_id != "")
            or (
                switch.backend == event.backend
                and switch.model in names
                and began_s - SLACK_S <= switch.end_s <= sent_s + SLACK_S
            )
        )


def _ends_of_parts(whole: Span, event: Finished, sent_s: float) -> list[tuple[str, float]]:
    """Return the names and ends of the waits within a request, those that took no time included."""
    ends = [("queue", sent_s)] if event.queue_s else []
    if event.attempted:
        first_s = whole.begin_s + event.ttft_s if event.ttft_s is not None else whole.end_s
        ends += [("first byte", min(max(sent_s, first_s), whole.end_s)), ("relay", whole.end_s)]
    return ends


@lru_cache(maxsize=1024)
def _name(operation: str, requested: str) -> str:
    return f"{semconv.operation_of(operation)} {_masked(requested)}"


def _own_facts(event: Finished) -> dict[str, Value]:
    """Return the attributes that hardly another request has."""
    facts: dict[str, Value] = {_REQUEST_ID: masked(event.request_id), _QUEUE_S: event.queue_s}
    if event.tokens_in is not None:
        facts[semconv.INPUT_TOKENS] = event.tokens_in
    if event.tokens_out is not None:
        facts[semconv.OUTPUT_TOKENS] = event.tokens_out
    return facts


def _facts_of(event: Finished, chain: str) -> Shared:
    """Return the attributes that other requests have, too."""
    served = event.variant if event.attempted else ""
    about = event.team, event.backend, chain, event.reason, event.outcome
    return _shared_facts(event.operation, event.requested, served, event.method, event.route, event.status, about)


@lru_cache(maxsize=1024)
def _shared_facts(
    operation: str, requested: str, served: str, method: str, route: str, status: int, about: tuple[str, ...]
) -> Shared:
    facts: dict[str, Value] = {
        semconv.OPERATION: semconv.operation_of(operation),
        semconv.PROVIDER: "ollama",
        semconv.REQUEST_MODEL: requested,
        semconv.RESPONSE_MODEL: served,
        semconv.ERROR_TYPE: _error_type(status, about[-1]),
        semconv.METHOD: method,
        semconv.ROUTE: route,
        semconv.STATUS: status,
    }
    own = zip(("team", "backend", "chain", "reason", "outcome"), about, strict=True)
    return Shared(_known(facts | {f"{semconv.OWN}{name}": value for name, value in own}))


def _decision_of(decided: Decided) -> Shared:
    return _shared_decision(decided.chosen, decided.reason, decided.outcome, decided.cause)


@lru_cache(maxsize=1024)
def _shared_decision(chosen: str, reason: str, outcome: str, cause: str) -> Shared:
    own = {"chosen": chosen, "reason": reason, "outcome": outcome, "cause": cause}
    return Shared(_known({f"{semconv.OWN}{name}": value for name, value in own.items()}))


def _error_type(status: int, outcome: str) -> str:
    """Return the status of an error, or how else a request has not ended well; "" if it has."""
    if status >= 400:
        return str(status)
    return "" if outcome == "completed" else outcome


def _known(facts: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return what is known, without secrets that clients may have put into names."""
    known = ((name, value) for name, value in facts.items() if value is not None and value != "")
    return {name: _masked(value) if isinstance(value, str) else value for name, value in known}


@lru_cache(maxsize=1024)
def _masked(text: str) -> str:
    """Return a text without secrets: most are names, and come again and again."""
    return masked(text)
