"""Spans as OTLP's protobuf, written directly: OpenTelemetry's own encoder takes five times as long.

A message is a row of fields, each with its number, its wire type and its value; see opentelemetry/proto/trace/v1. What
most spans share, their names and attributes, is encoded once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from router.telemetry.spans import Link, Moment, Shared, Span, Value

NS = 1_000_000_000
_LENGTH = 2
"""The wire type of what has a length: texts, bytes, messages."""

_BYTES = tuple(bytes([number]) for number in range(0x80))
_MASK = (1 << 64) - 1
_KINDS = {"internal": b"\x30\x01", "server": b"\x30\x02"}
_FLAGS = {False: b"\x85\x01\x00\x01\x00\x00", True: b"\x85\x01\x00\x03\x00\x00"}
"""Whether the parent is known to be remote, and is."""

_LINK_FLAGS = b"\x35\x00\x01\x00\x00"


def head_of(resource: Mapping[str, Value], name: str, version: str, attributes: Mapping[str, Value]) -> Head:
    """Return what all spans share: the attributes of the resource, and name, version and attributes of the scope."""
    scope = _text(1, name) + _text(2, version) + _attributes(3, attributes)
    return Head(_field(1, _attributes(1, resource)), _field(1, scope))


class Head:
    """The encoded resource and scope of all spans."""

    def __init__(self, resource: bytes, scope: bytes) -> None:
        self._resource, self._scope = resource, scope

    def request(self, spans: Iterable[Span]) -> bytes:
        """Return the body of an ExportTraceServiceRequest with these spans."""
        scoped = self._scope + b"".join([_field(2, _span(span)) for span in spans])
        return _field(1, self._resource + _field(2, scoped))


def _span(span: Span) -> bytes:
    parent = b"\x22\x08" + bytes.fromhex(span.parent_id) if span.parent_id else b""
    parts = [
        _ids(span),
        parent,
        _text(5, span.name),
        _KINDS[span.kind],
        struct.pack("<BQBQ", 0x39, round(span.begin_s * NS), 0x41, round(span.end_s * NS)),
        _shared(9, span.shared),
        _attributes(9, span.attributes) if span.attributes else b"",
        *([_field(11, _event(moment)) for moment in span.moments] if span.moments else ()),
        *([_field(13, _ids(link) + _LINK_FLAGS) for link in span.links] if span.links else ()),
        _field(15, _text(2, span.error) + b"\x18\x02") if span.error else b"\x7a\x00",
        _FLAGS[bool(parent) and span.kind == "server"],
    ]
    return b"".join(parts)


def _ids(of: Span | Link) -> bytes:
    """Return the ids of trace and span, which are the first two fields of a span and of a link."""
    return b"\x0a\x10%b\x12\x08%b" % (bytes.fromhex(of.trace_id), bytes.fromhex(of.span_id))


def _event(moment: Moment) -> bytes:
    at = struct.pack("<BQ", 0x09, round(moment.at_s * NS))
    return at + _text(2, moment.name) + _shared(3, moment.shared)


@lru_cache(maxsize=1024)
def _shared(number: int, shared: Shared) -> bytes:
    return _attributes(number, shared.attributes)


def _attributes(number: int, attributes: Mapping[str, Value]) -> bytes:
    return b"".join([_attribute(number, *each) for each in attributes.items()])


@lru_cache(maxsize=4096, typed=True)  # typed: 1 and 1.0 are equal, and encoded differently
def _attribute(number: int, name: str, value: Value) -> bytes:
    """Return an attribute as the field `number` of its message."""
    return _field(number, _text(1, name) + _field(2, _value(value)))


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return _field(1, value.encode("utf-8", "replace"))  # also an empty one, which would be no value
    if isinstance(value, int):
        return b"\x18" + _varint(value & _MASK)
    return struct.pack("<Bd", 0x21, value)


@lru_cache(maxsize=1024)
def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode("utf-8", "replace")) if text else b""


def _field(number: int, data: bytes) -> bytes:
    """Return a field with a length; its number is at most 15, so that it takes one byte."""
    return _BYTES[number << 3 | _LENGTH] + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _BYTES[number]
    found: list[int] = []
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
