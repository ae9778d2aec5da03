"""Header cache: a header block identical to an earlier one, except for Content-Length and Date, is not parsed again.

A peer that keeps a connection open sends nearly the same head with every message. The result of the parser and the
rules for those bytes is valid whenever they come again, so nothing is checked here. Any input other than exactly one
complete message with a cached head goes to the parser.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

MAX_HEAD_BYTES = 2048
"""Longer heads are not cached."""

MAX_HEADS = 256
"""Maximum number of cached heads per listener, or per upstream."""

MAX_MISSES = 4
"""After this many cached heads in a row that did not come again, a connection stops caching."""

_MAX_DIGITS = 8
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,%d})[ \t]*\r\n" % _MAX_DIGITS)
_DATE = re.compile(rb"(?i)\r\ndate:[ \t]*([a-z]{3}, [0-9]{2} [a-z]{3} [0-9]{4} [0-9:]{8} GMT)[ \t]*\r\n")
_IN_DATES = b", :" + string.ascii_letters.encode() + string.digits.encode()

T = TypeVar("T")
H = TypeVar("H", bound=msgspec.Struct)


class HeadTemplate(msgspec.Struct, Generic[T], eq=False):
    """The bytes of a head around its variable parts, and the parsed `head`.

    In this order: `front`, a date of `date_bytes` (0 = none; then `middle` is empty), `middle`, the digits of the
    length, and `tail` up to the empty line. `date` is the last one read. `last` is the last head as a whole, in
    front of a body of `length`, and `latest` what was parsed: the next one is often the same to the byte.
    """

    front: bytes
    date_bytes: int
    middle: bytes
    tail: bytes
    head: T
    date: bytes = b""
    last: bytes = b""
    length: int = 0
    latest: T | None = None

    def match(self, data: bytes) -> tuple[T, bytes] | None:
        """Return the head and the body of `data`, None unless it is exactly one message with this head."""
        last = self.last
        if self.latest is not None and data.startswith(last) and len(data) - len(last) == self.length:
            return self.latest, data[len(last) :]
        if (found := self.read(data)) is None:
            return None
        digits, body = found
        self.latest, self.last, self.length = with_length(self.head, digits), data[: len(data) - len(body)], len(body)
        return self.latest, body

    def read(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the length's digits and the body of `data`, None unless it is exactly one message with this head."""
        if not data.startswith(self.front):
            return None
        start = len(self.front)
        if self.date_bytes:
            date = data[start : start + self.date_bytes]
            start += self.date_bytes
            if (date != self.date and date.translate(None, _IN_DATES)) or not data.startswith(self.middle, start):
                return None
            self.date = date
            start += len(self.middle)
        end = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(self.tail, end):
            return None
        body = data[end + len(self.tail) :]
        return (digits, body) if len(body) == int(digits) else None


def with_length(head: T, digits: bytes) -> T:
    """Return `head`, which has `headers` and `by_name`, with another Content-Length."""
    known: Any = head
    if known.by_name[b"content-length"] == digits:
        return head
    headers = [(name, digits if name == b"content-length" else value) for name, value in known.headers]
    changed: T = msgspec.structs.replace(known, headers=headers, by_name=dict(headers))
    return changed


class HeadCache(Generic[T]):
    """The cached heads. With `is_dated` the Date may differ, which requires that no code reads it."""

    def __init__(self, *, is_dated: bool = False) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], HeadTemplate[T]] = {}
        self._is_dated = is_dated

    def template_of(
        self, data: bytes, by_name: Mapping[bytes, bytes], body_bytes: int, head: T
    ) -> HeadTemplate[T] | None:
        """Return the template by which the head of `data` can be recognized, None if it cannot be cached.

        `data` is one complete, parsed message, `by_name` its headers, `body_bytes` the length of its body.
        """
        length = by_name.get(b"content-length")
        size = len(data) - body_bytes
        if length is None or size > MAX_HEAD_BYTES:
            return None
        text = data[:size]
        found = _LENGTH.search(text)
        if found is None or found[1] != length or int(length) != body_bytes or text.find(b"\r\n\r\n") != size - 4:
            return None
        names = text.lower()
        if names.count(b"content-length") != 1 or (self._is_dated and names.count(b"\r\ndate") > 1):
            return None
        date = _DATE.search(text, 0, found.start(1)) if self._is_dated else None
        start, end = date.span(1) if date is not None else (found.start(1), found.start(1))
        key = text[:start], text[end : found.start(1)], text[found.end(1) :]
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_HEADS:
                del self._known[next(iter(self._known))]
            known = self._known[key] = HeadTemplate(key[0], end - start, key[1], key[2], head)
        return known


class LastHead(Generic[H]):
    """The last head of one connection's peer, if it may come again."""

    __slots__ = ("_cache", "misses", "template")

    def __init__(self, cache: HeadCache[H]) -> None:
        self.template: HeadTemplate[H] | None = None
        self._cache = cache
        self.misses = 0

    def record_hit(self) -> None:
        """Record that a message repeated the head: caching is worthwhile on this connection."""
        self.misses = 0

    def learn(self, data: bytes, by_name: Mapping[bytes, bytes], body_bytes: int, head: H) -> None:
        """Cache the head of `data`, one complete, parsed message; if that was useless too often, look for no more."""
        self.misses += 1
        is_useful = self.misses <= MAX_MISSES
        self.template = self._cache.template_of(data, by_name, body_bytes, head) if is_useful else None
