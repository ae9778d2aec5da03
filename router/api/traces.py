"""The trace that a client's request is part of (W3C Trace Context, level 1 and 2), and the router's own span in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import urandom
from random import random
from typing import NamedTuple

from router.api.responses import request_headers
from router.http.headers import Header, header_lines
from router.routing.call import Call
from router.telemetry import TraceContext

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16
_SAMPLED = 1
AT_ONCE = 64
"""Requests for which ids are made at once: that takes half the time."""


class Parent(NamedTuple):
    """The client's span."""

    trace_id: str
    span_id: str
    is_sampled: bool


class Tracing:
    """Makes each request a span of its own, in the client's trace if it has one.

    `sample` is the part of the traces that begin here that is recorded; of a client's trace the client has decided.
    """

    def __init__(self, sample: float = 1.0, chance: Callable[[], float] = random) -> None:
        self._sample, self._chance = sample, chance

    def begin(self, call: Call, headers: Sequence[Header], by_name: Mapping[bytes, bytes]) -> None:
        """Begin the span of `call`: what goes upstream names it as the parent."""
        if TRACEPARENT not in by_name and TRACESTATE not in by_name:  # common case: nothing to take out
            self._begin_trace(call, call.lines)
            return
        parent = parent_of(headers, by_name)
        if parent is None:
            self._begin_trace(call, _lines_without(headers, by_name, TRACEPARENT, TRACESTATE))
        elif parent.is_sampled:
            span = TraceContext(parent.trace_id, next(_DIGITS)[32:], parent.span_id)
            call.begin_span(span, _lines_without(headers, by_name, TRACEPARENT) + _line(span.header()))
        else:  # recorded by nobody: the client's own header is passed on
            call.trace(parent.trace_id)

    def _begin_trace(self, call: Call, lines: bytes) -> None:
        """Begin a trace. Of one that is not recorded, nothing is kept but what the next server reads."""
        digits = next(_DIGITS)
        trace_id, span_id = digits[:32], digits[32:]
        if self._chance() < self._sample:
            span = TraceContext(trace_id, span_id)
            call.begin_span(span, lines + _line(span.header()))
        else:
            call.trace(trace_id, lines + f"traceparent: 00-{trace_id}-{span_id}-00\r\n".encode())


def _lines_without(headers: Sequence[Header], by_name: Mapping[bytes, bytes], *names: bytes) -> bytes:
    """Return the headers that go upstream, except some."""
    return header_lines([header for header in request_headers(headers, by_name) if header[0] not in names])


def _line(value: bytes) -> bytes:
    return b"traceparent: %b\r\n" % value


def _random_digits() -> Iterator[str]:
    """Yield 48 hexadecimal digits at a time, enough for the ids of a trace and of a span; made for many at once."""
    while True:
        digits = urandom(AT_ONCE * 24).hex()
        yield from (digits[at : at + 48] for at in range(0, len(digits), 48))


_DIGITS = _random_digits()


def trace_id_of(headers: Sequence[Header], by_name: Mapping[bytes, bytes]) -> str:
    """Return the trace id of the `traceparent` header; "" if there is none, or more than one, or an invalid one.

    `by_name` is `headers` as a dict. The header itself is passed on unchanged.
    """
    parent = parent_of(headers, by_name)
    return parent.trace_id if parent is not None else ""


def parent_of(headers: Sequence[Header], by_name: Mapping[bytes, bytes]) -> Parent | None:
    """Return what the `traceparent` header names; None if there is none, or more than one, or an invalid one.

    A version that is not known yet is read by the form of version 00, which it extends; version ff is none.
    """
    value = by_name.get(TRACEPARENT)
    if value is None or (len(by_name) != len(headers) and [name for name, _ in headers].count(TRACEPARENT) > 1):
        return None
    found = _FORM.fullmatch(value.strip(b" \t"))
    if found is None:
        return None
    version, trace_id, parent, flags, rest = found.groups()
    if version == b"ff" or trace_id == _NO_TRACE or parent == _NO_PARENT or (version == b"00" and rest is not None):
        return None
    return Parent(trace_id.decode(), parent.decode(), bool(int(flags, 16) & _SAMPLED))
