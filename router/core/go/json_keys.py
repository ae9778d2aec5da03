"""Split JSON bodies into members and elements without copying, like Go's `encoding/json`.

msgspec is the fast path. What it rejects goes to `json_scan.py`, which accepts and rejects exactly what Go does; and
what is longer than `LONG_BYTES`, because nothing interrupts a step of msgspec, in whichever thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from router.core.go.json_scan import MOST_KEY_BYTES, STEP_BYTES, end_of_start, scan, scan_first, scan_runs, start_of
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

LONG_BYTES = 1 << 20
"""Of what is read in one step: that takes up to 4 ms."""

MOST_OF_KEYS = 256 << 10
"""Characters of all keys of a long object together."""

MOST_WORD_BYTES = MOST_KEY_BYTES
"""Of what is compared with names and words that are known: none is as long."""

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

NOT_QUICK = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for what it does not read."""


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
    if len(text) <= MOST_KEYS:  # a key takes more than one byte
        return _split_few(text)
    members = _split_long(text) if len(text) > LONG_BYTES else _split_many(text)
    if len(members) > MOST_KEYS:
        raise too_many_keys()
    return members


def _split_many(text: bytes | memoryview) -> Members:
    left = MOST_KEYS

    def counted(kind: type[_Key], key: str) -> _Key:
        nonlocal left
        left -= 1
        if left < 0:
            raise too_many_keys()
        return str.__new__(kind, key)

    try:
        counting = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=counted)
        return [(str(key), memoryview(raw)) for key, raw in _decode(counting, text).items()]
    except NOT_QUICK:
        return _scanned(text)


def _split_long(text: bytes | memoryview) -> Members:
    view, at, members = memoryview(text), start_of(text), Members()
    is_object = bytes(view[at : at + 1]) == b"{"
    for span in scan_runs(text):
        if not is_object:
            continue  # all of it must be valid
        if span.is_run:
            members += split(b"{%b}" % bytes(view[span.start : span.end]))
        else:
            members.append((_read_key(span.key), view[span.start : span.end]))
        if len(members) > MOST_KEYS:
            break
    if sum(len(key) for key, _ in members) > MOST_OF_KEYS:  # they are written again when it is sent, on the loop
        raise BadRequest(f"the keys of the request's body have more than {MOST_OF_KEYS} characters")
    return members


def too_many_keys() -> BadRequest:
    return BadRequest(f"the request's body has more than {MOST_KEYS} keys")


def _split_few(text: bytes | memoryview) -> Members:
    try:
        return [(str(key), memoryview(raw)) for key, raw in _decode(_MEMBERS, text).items()]
    except NOT_QUICK:
        return _scanned(text)


def _scanned(text: bytes | memoryview) -> Members:
    whole = bytes(text)
    view = memoryview(whole)
    return [(_read_key(span.key), view[span.start : span.end]) for span in scan(whole) if span.key]


def _read_key(key: bytes) -> str:
    if len(key) > MOST_KEY_BYTES:
        raise BadRequest(f"the request's body has a key of more than {MOST_KEY_BYTES} bytes")
    return read_text(key)


def used_up(items: list[_T]) -> Iterator[_T]:
    """Yield each of `items` and let go of it: to free very many at one time would hold the loop from any thread."""
    items.reverse()
    while items:
        yield items.pop()


def parts(view: memoryview) -> Iterator[tuple[memoryview | bytes, bool]]:
    """Yield arrays that together have the elements of a valid JSON array, none of which takes long to read.

    A long element is yielded alone, without brackets and with True.
    """
    if len(view) <= LONG_BYTES:
        yield view, False
        return
    start = end = 0
    for span in scan_runs(view):
        is_long = span.end - span.start > LONG_BYTES
        if start and (is_long or span.end - start > STEP_BYTES):
            yield b"[%b]" % bytes(view[start:end]), False
            start = 0
        if is_long:
            yield view[span.start : span.end], True
        else:
            start, end = start or span.start, span.end
    if start:
        yield b"[%b]" % bytes(view[start:end]), False


def elements(view: memoryview) -> Iterator[memoryview]:
    """Yield the elements of a valid JSON array."""
    for part, is_one in parts(view):
        if is_one:
            yield memoryview(part)
        else:
            yield from _elements(part)


def _elements(text: memoryview | bytes) -> Iterator[memoryview]:
    try:
        found = _ELEMENTS.decode(text)
    except (msgspec.DecodeError, RecursionError):
        whole = bytes(text)
        yield from (memoryview(whole)[span.start : span.end] for span in scan(whole))
    else:
        yield from (memoryview(raw) for raw in used_up(found))


def quick_elements(decoder: msgspec.json.Decoder[list[_T]], view: memoryview | msgspec.Raw) -> Iterator[_T]:
    """Yield the elements of an array at msgspec's speed. Raise one of NOT_QUICK if they must be read one by one."""
    for part, is_one in parts(memoryview(view)):
        if is_one:
            raise msgspec.DecodeError("it takes long to read")
        yield from used_up(decoder.decode(part))


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


def read_word(view: bytes | memoryview | None) -> str:
    """Return the same of what is a name or a known word; of a far longer text its beginning, with an ellipsis."""
    if view is None or len(view) <= MOST_WORD_BYTES:
        return read_text(view)
    return read_text(bytes(view[: end_of_start(view, MOST_WORD_BYTES)]) + b'"') + "…"


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
    return kind_of(memoryview(body)[start_of(body) :])
