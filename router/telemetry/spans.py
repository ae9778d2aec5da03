"""Requests and switches as spans: plain data, made from events after the fact. No prompt, key or text of an error.

A request is a span of its own with the waits in it as children. A switch is a span in a trace of its own, because many
requests may have waited for it: each of them links to it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from router.core.masking import masked
from router.telemetry import semconv
from router.telemetry.events import Decided, Finished, Spilled, Switched

Value = str | int | float
MOST_SWITCHES = 256
"""Switches that later requests may still link to."""

SLACK_S = 0.25
"""A request's end is reported in a batch, so what it says of its begin is late by a moment."""


class Link(NamedTuple):
    """A span in another trace."""

    trace_id: str
    span_id: str


class Moment(NamedTuple):
    """Something that happened within a span, at Unix time `at_s`."""

    name: str
    at_s: float
    attributes: Mapping[str, Value]


class Span(msgspec.Struct, frozen=True):
    """A span from `begin_s` to `end_s` (Unix times). Ids are in hexadecimal; `error` is "" if it ended well."""

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


def new_trace_id() -> str:
    """Return the id of a new trace."""
    return f"{random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """Return the id of a new span."""
    return f"{random.getrandbits(64) or 1:016x}"


class SpanMaker:
    """Makes the spans of events, which come in their order."""

    def __init__(self) -> None:
        self._switches: deque[_Switch] = deque(maxlen=MOST_SWITCHES)

    def spans_of(self, noted: Noted) -> list[Span]:
        """Return the spans of one event: of a request itself and the waits in it, or of a switch."""
        event = noted.event
        if isinstance(event, Finished):
            return self._of_request(event, noted.at_s, noted.decided)
        return [self._of_switch(event, noted.at_s)] if isinstance(event, Switched) else []

    def _of_switch(self, event: Switched, at_s: float) -> Span:
        link = Link(new_trace_id(), new_span_id())
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
            f"{semconv.operation_of(event.operation)} {_masked(event.requested)}",
            context.trace_id,
            context.span_id,
            context.parent_id,
            began_s,
            at_s,
            "server",
            _facts(event, decided),
            links,
            () if decided is None else (Moment("decision", sent_s, _decision(decided)),),
            _error_type(event),
        )
        return [whole, *_parts(whole, event, sent_s)]

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


def _parts(whole: Span, event: Finished, sent_s: float) -> list[Span]:
    """Return the waits within a request: for its turn and its model, for the first byte, and for the rest."""
    found, at_s = [], whole.begin_s
    ends = [("queue", sent_s if event.queue_s else at_s)]
    if event.attempted:
        first_s = whole.begin_s + event.ttft_s if event.ttft_s is not None else whole.end_s
        ends += [("first byte", min(max(sent_s, first_s), whole.end_s)), ("relay", whole.end_s)]
    for name, end_s in ends:
        if end_s > at_s:
            found.append(Span(name, whole.trace_id, new_span_id(), whole.span_id, at_s, end_s))
            at_s = end_s
    return found


def _facts(event: Finished, decided: Decided | None) -> dict[str, Value]:
    facts = {
        semconv.OPERATION: semconv.operation_of(event.operation),
        semconv.PROVIDER: "ollama",
        semconv.REQUEST_MODEL: event.requested,
        semconv.RESPONSE_MODEL: event.variant if event.attempted else "",
        semconv.INPUT_TOKENS: event.tokens_in,
        semconv.OUTPUT_TOKENS: event.tokens_out,
        semconv.ERROR_TYPE: _error_type(event),
        semconv.METHOD: event.method,
        semconv.ROUTE: event.route,
        semconv.STATUS: event.status,
        f"{semconv.OWN}request_id": event.request_id,
        f"{semconv.OWN}team": event.team,
        f"{semconv.OWN}backend": event.backend,
        f"{semconv.OWN}chain": decided.chain if decided is not None else "",
        f"{semconv.OWN}reason": event.reason,
        f"{semconv.OWN}outcome": event.outcome,
        f"{semconv.OWN}queue_s": event.queue_s,
    }
    return _known(facts)


def _decision(decided: Decided) -> dict[str, Value]:
    own = {"chosen": decided.chosen, "reason": decided.reason, "outcome": decided.outcome, "cause": decided.cause}
    return _known({f"{semconv.OWN}{name}": value for name, value in own.items()})


def _error_type(event: Finished) -> str:
    """Return the status of an error, or how else a request has not ended well; "" if it has."""
    if event.status >= 400:
        return str(event.status)
    return "" if event.outcome == "completed" else event.outcome


def _known(facts: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return what is known, without secrets that clients may have put into names."""
    known = ((name, value) for name, value in facts.items() if value is not None and value != "")
    return {name: _masked(value) if isinstance(value, str) else value for name, value in known}


@lru_cache(maxsize=1024)
def _masked(text: str) -> str:
    """Return a text without secrets: most are names, and come again and again."""
    return masked(text)
