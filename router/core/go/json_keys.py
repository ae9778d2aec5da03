"""Split JSON bodies into members and elements without copying, like Go's `encoding/json`.

msgspec is the fast path. What it rejects goes to `json_scan.py`, which accepts and rejects exactly what Go does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from router.core.go.json_scan import scan, scan_first
from router.errors import BadRequest

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

MOST_KEYS = 4096
"""Most keys of a body, and of each object in it that is decoded: the longest of Ollama's types has 30 fields."""

_QUOTE = ord('"')


class _Key(str):
    """A key that equals no other key, so that msgspec keeps duplicates."""

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
        # Go ignores trailing characters. The number is the position of the first of them, counted from 1.
        return decoder.decode(memoryview(text)[: int(trailing[1]) - 1])


def first_value(text: bytes) -> memoryview:
    """Return the first JSON value in `text`, without the white space around it and without trailing characters.

    Raise EndOfBody or BadRequest if Go's decoder would find no valid JSON value.
    """
    try:
        return memoryview(_decode(_VALUE, text))
    except (msgspec.DecodeError, RecursionError):
        span = scan_first(text)
        return memoryview(text)[span.start : span.end]


def split(text: bytes | memoryview) -> Members:
    """Return every member of the JSON object at the start of `text`, in order, with duplicates; [] for other values.

    Raise EndOfBody or BadRequest if Go's decoder would find no valid JSON value, and BadRequest at the first key beyond
    `MOST_KEYS`, before all of them are in memory.
    """
    left = MOST_KEYS

    def counted(kind: type[_Key], key: str) -> _Key:
        nonlocal left
        left -= 1
        if left < 0:
            raise too_many_keys()
        return str.__new__(kind, key)

    if len(text) <= MOST_KEYS:  # a key takes more than one byte
        return _split_few(text)
    try:
        counting = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=counted)
        return [(str(key), memoryview(raw)) for key, raw in _decode(counting, text).items()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members = _scanned(text)
    if len(members) > MOST_KEYS:
        raise too_many_keys()
    return members


def too_many_keys() -> BadRequest:
    return BadRequest(f"the request's body has more than {MOST_KEYS} keys")


def _split_few(text: bytes | memoryview) -> Members:
    try:
        return [(str(key), memoryview(raw)) for key, raw in _decode(_MEMBERS, text).items()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _scanned(text)


def _scanned(text: bytes | memoryview) -> Members:
    whole = bytes(text)
    view = memoryview(whole)
    return [(read_text(span.key), view[span.start : span.end]) for span in scan(whole) if span.key]


def used_up(items: list[_T]) -> Iterator[_T]:
    """Yield each of `items` and let go of it: to free very many at one time would hold the loop from any thread."""
    items.reverse()
    while items:
        yield items.pop()


def elements(view: memoryview) -> Iterator[memoryview]:
    """Yield the elements of a valid JSON array."""
    try:
        found = _ELEMENTS.decode(view)
    except (msgspec.DecodeError, RecursionError):
        whole = bytes(view)
        yield from (memoryview(whole)[span.start : span.end] for span in scan(whole))
    else:
        yield from (memoryview(raw) for raw in used_up(found))


def texts_bytes(view: memoryview) -> tuple[int, int] | None:
    """Return number and bytes of the texts of a valid JSON array of strings, without quotes; None for other arrays."""
    count = size_bytes = 0
    for item in elements(view):
        if item[0] != _QUOTE:
            return None
        count, size_bytes = count + 1, size_bytes + len(item) - 2
    return count, size_bytes


def read_text(view: bytes | memoryview | None) -> str:
    """Return a valid JSON string as Go decodes it: invalid Unicode becomes U+FFFD. None and null become "" (empty)."""
    if view is None:
        return ""
    try:
        return _STRING.decode(view)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raw = bytes(view).decode("utf-8", "surrogateescape")
    found = json.loads(raw, strict=False)
    return _SURROGATE.sub("\ufffd", found) if isinstance(found, str) else ""


def fold(key: str) -> str:
    """Return `key` folded as Go folds it before it compares it with a field's ASCII name.

    Under simple folding only U+017F (ſ) and U+212A (the Kelvin sign) become ASCII letters.
    """
    if key.isascii() and key.islower():  # the common case, far cheaper to detect than to fold
        return key
    return key.lower().replace("\u017f", "s")


def kind_of(view: memoryview) -> str:
    """Return the kind of a valid JSON value in the terms of Go's decoder: "string", "number", "object" …"""
    return KINDS.get(view[0], "number")


def first_kind(body: bytes) -> str:
    """Return the kind of the first JSON value of a valid body."""
    return kind_of(memoryview(body.lstrip(b" \t\r\n")[:1]))
