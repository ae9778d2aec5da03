"""The trace that a client's request is part of (W3C Trace Context, level 1 and 2), and the router's own span in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from random import random
from typing import NamedTuple

from router.api.responses import request_headers
from router.http.headers import Header, header_lines
from router.routing.call import Call
from router.telemetry import TraceContext
from router.telemetry.ids import AT_ONCE, SPAN_DIGITS, TRACE_DIGITS, random_digits

TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_PARENT = b"0" * 32, b"0" * 16
_SAMPLED = 1
_TRACE_IDS, _SPAN_IDS = random_digits(TRACE_DIGITS), random_digits(SPAN_DIGITS)


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
            self._begin_trace(call)
            return
        parent = parent_of(headers, by_name)
        if parent is None:
            call.pass_on(_lines_without(headers, by_name, TRACEPARENT, TRACESTATE))
            self._begin_trace(call)
        elif parent.is_sampled:
            call.pass_on(_lines_without(headers, by_name, TRACEPARENT))
            self._record(call, TraceContext(parent.trace_id, next(_SPAN_IDS), parent.span_id))
        else:  # recorded by nobody: the client's own header is passed on
            call.trace(parent.trace_id)

    def _begin_trace(self, call: Call) -> None:
        """Begin a trace. Of one that is not recorded, nothing is kept but what the next server reads."""
        if self._chance() < self._sample:
            self._record(call, TraceContext(next(_TRACE_IDS), next(_SPAN_IDS)))
        else:
            call.trace(*next(_NOT_RECORDED))

    @staticmethod
    def _record(call: Call, span: TraceContext) -> None:
        call.trace(span.trace_id, b"traceparent: %b\r\n" % span.header(), span)


def _lines_without(headers: Sequence[Header], by_name: Mapping[bytes, bytes], *names: bytes) -> bytes:
    """Return the headers that go upstream, except some."""
    return header_lines([header for header in request_headers(headers, by_name) if header[0] not in names])


def _not_recorded() -> list[tuple[str, bytes]]:
    """Return ids of traces that are not recorded, each with the header that says so: many at once, which is cheaper."""
    ids = islice(zip(_TRACE_IDS, _SPAN_IDS, strict=False), AT_ONCE)
    return [(trace_id, f"traceparent: 00-{trace_id}-{span_id}-00\r\n".encode()) for trace_id, span_id in ids]


_NOT_RECORDED = chain.from_iterable(iter(_not_recorded, None))


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
