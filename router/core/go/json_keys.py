"""JSON bodies cut into members and elements without copying, as Go's `encoding/json` would cut them.

msgspec does the work; what it refuses goes through `json_scan.py`, which accepts and refuses exactly what Go does.
"""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec

from router.core.go.json_scan import scan, scan_first

KINDS = {
    ord('"'): "string",
    ord("{"): "object",
    ord("["): "array",
    ord("t"): "bool",
    ord("f"): "bool",
    ord("n"): "null",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")


Members = list[tuple[str, memoryview]]


class _Key(str):
    """A key that equals no other, so that msgspec keeps duplicates."""

    __slots__ = ()

    __hash__ = object.__hash__
    __eq__ = object.__eq__


_MEMBERS = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=str.__new__)
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_VALUE = msgspec.json.Decoder(msgspec.Raw)
_T = TypeVar("_T")


def _decode(decoder: msgspec.json.Decoder[_T], text: bytes | memoryview) -> _T:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as exc:
        if (trailing := _TRAILING.search(str(exc))) is None:
            raise
        # Go ignores what follows the value; the number counts the first such byte.
        return decoder.decode(memoryview(text)[: int(trailing[1]) - 1])


def first_value(text: bytes) -> memoryview:
    """The JSON value that `text` begins with, without the white space around it and without what follows.

    Raises EndOfBody or BadRequest where Go's decoder finds no valid JSON value.
    """
    try:
        return memoryview(_decode(_VALUE, text))
    except (msgspec.DecodeError, RecursionError):
        span = scan_first(text)
        return memoryview(text)[span.start : span.end]


def split(text: bytes | memoryview) -> Members:
    """Every member of the JSON object that `text` begins with, in order, duplicates included; none of another value.

    Raises EndOfBody or BadRequest where Go's decoder finds no valid JSON value.
    """
    try:
        return [(str(key), memoryview(raw)) for key, raw in _decode(_MEMBERS, text).items()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    whole = bytes(text)
    view = memoryview(whole)
    return [(read_text(span.key), view[span.start : span.end]) for span in scan(whole) if span.key]


def elements(view: memoryview) -> list[memoryview]:
    """The elements of a valid JSON array."""
    try:
        return [memoryview(raw) for raw in _ELEMENTS.decode(view)]
    except (msgspec.DecodeError, RecursionError):
        whole = bytes(view)
        return [memoryview(whole)[span.start : span.end] for span in scan(whole)]


def read_text(view: bytes | memoryview | None) -> str:
    """A valid JSON string as Go reads it: what is no Unicode becomes U+FFFD. None and null read as ""."""
    if view is None:
        return ""
    try:
        return _STRING.decode(view)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raw = bytes(view).decode("utf-8", "surrogateescape")
    found = json.loads(raw, strict=False)
    return _SURROGATE.sub("\ufffd", found) if isinstance(found, str) else ""


def fold(key: str) -> str:
    """A key as Go compares it with a field's ASCII name: simple folding, under which only ſ and K are ASCII letters."""
    if key.isascii() and key.islower():  # the usual case, and far cheaper to see than to fold
        return key
    return key.lower().replace("\u017f", "s")


def kind_of(view: memoryview) -> str:
    """What a valid JSON value is, in the words of Go's decoder."""
    return KINDS.get(view[0], "number")


def first_kind(body: bytes) -> str:
    """What the first JSON value of a valid body is."""
    return kind_of(memoryview(body.lstrip(b" \t\r\n")[:1]))
