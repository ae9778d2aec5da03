"""Header cache: a header block identical to an earlier one, except for Content-Length and Date, is not parsed again.

A client that keeps a connection sends nearly the same head with every message. What the parser and the rules have made
of those bytes once holds whenever they come again, so nothing is judged here: whatever is not one whole message with a
known head, and nothing more, goes to the parser.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

LONGEST_BYTES = 2048
"""Longer heads are parsed every time."""

MOST_KNOWN = 256
"""Heads that are known at once on all connections of one listener, or to one upstream."""

MOST_VAIN = 4
"""A connection whose heads were learnt so often in a row, and never came again, is left alone."""

_MOST_DIGITS = 8
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,%d})[ \t]*\r\n" % _MOST_DIGITS)
_DATE = re.compile(rb"(?i)\r\ndate:[ \t]*([a-z]{3}, [0-9]{2} [a-z]{3} [0-9]{4} [0-9:]{8} GMT)[ \t]*\r\n")
_IN_DATES = b", :" + string.ascii_letters.encode() + string.digits.encode()

T = TypeVar("T")
H = TypeVar("H", bound=msgspec.Struct)


class Repeat(msgspec.Struct, Generic[T], eq=False):
    """The bytes of a head and what it `says`.

    `front`, a date of `date_bytes` (perhaps none), `middle`, the digits of the length, `behind` with the empty line.
    """

    front: bytes
    date_bytes: int
    middle: bytes
    behind: bytes
    says: T

    def read(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The digits and the body of `data`, where that is one whole message with this head and nothing more."""
        start = len(self.front)
        if not data.startswith(self.front):
            return None
        if self.date_bytes:
            date, start = start, start + self.date_bytes
            if data[date:start].translate(None, _IN_DATES):
                return None
        if not data.startswith(self.middle, start):
            return None
        start += len(self.middle)
        end = data.find(b"\r", start, start + _MOST_DIGITS + 1)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(self.behind, end):
            return None
        body = data[end + len(self.behind) :]
        return (digits, body) if len(body) == int(digits) else None


def with_length(head: H, digits: bytes) -> H:
    """`head`, which has `headers` and the same as a dict (`noted`), for a body of another length."""
    said: Any = head
    if said.noted[b"content-length"] == digits:
        return head
    headers = [(name, digits if name == b"content-length" else value) for name, value in said.headers]
    return msgspec.structs.replace(head, headers=headers, noted=dict(headers))


class Repeats(Generic[T]):
    """The heads that came lately. With `is_dated` a Date may differ: only where nobody reads it."""

    def __init__(self, *, is_dated: bool = False) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], Repeat[T]] = {}
        self._is_dated = is_dated

    def of(self, data: bytes, noted: Mapping[bytes, bytes], body_bytes: int, says: T) -> Repeat[T] | None:
        """What to know `data` again by, one whole message that was parsed; None where that cannot be.

        `noted` are its headers, `body_bytes` is the length of its body.
        """
        length = noted.get(b"content-length")
        size = len(data) - body_bytes
        if length is None or size > LONGEST_BYTES:
            return None
        text = data[:size]
        found = _LENGTH.search(text)
        if found is None or found[1] != length or int(length) != body_bytes or text.find(b"\r\n\r\n") != size - 4:
            return None
        names = text.lower()
        if names.count(b"content-length") != 1 or (self._is_dated and names.count(b"\r\ndate") > 1):
            return None
        date = _DATE.search(text, 0, found.start(1)) if self._is_dated else None
        start, end = date.span(1) if date is not None else (0, 0)
        key = text[:start], text[end : found.start(1)], text[found.end(1) :]
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            known = self._known[key] = Repeat(key[0], end - start, key[1], key[2], says)
        return known


class Known(Generic[H]):
    """The head that one connection's peer sent last, if it may come again."""

    __slots__ = ("_repeats", "repeat", "vain")

    def __init__(self, repeats: Repeats[H]) -> None:
        self.repeat: Repeat[H] | None = None
        self._repeats = repeats
        self.vain = 0

    def came_again(self) -> None:
        """A message with the known head has come: it was not learnt in vain."""
        self.vain = 0

    def learn(self, data: bytes, noted: Mapping[bytes, bytes], body_bytes: int, says: H) -> None:
        """Know `data`, one whole message that was parsed, by its bytes; not where that was in vain too often."""
        if self.vain < MOST_VAIN:
            self.vain += 1
            self.repeat = self._repeats.of(data, noted, body_bytes, says)
