"""A JSON scanner that agrees with Go's `encoding/json` on what is valid and on the text of each error.

It is the slow path for what msgspec rejects. Some of that Go accepts (lone surrogates, deep nesting, invalid UTF-8 in a
key); for the rest the scanner raises Go's error. It never recurses.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from router.core.go.quoting import go_quoted
from router.errors import BadRequest

_MAX_DEPTH = 10_000  # Go's own limit
# A body that takes more steps (about 0.2 s of work) is rejected as an attack. A run of plain values is one step.
_MAX_STEPS = 200_000

# Python before 3.11.5 (Debian 12 has 3.11.2) forgets where a group in `(…)*+` began if it fails after a repetition or a
# choice within it (gh-106052). So such a group has neither, but alternatives that fail at a character.
_SPACE = re.compile(rb"[ \t\r\n]*+")
_CHARS = rb'(?:[^"\\\x00-\x1f]{1,%d}+|\\["\\/bfnrt]|\\u%b)'
# One match holds the loop, from whichever thread: a long string takes several.
_IN_STRING = re.compile(_CHARS % (4096, rb"[0-9A-Fa-f]" * 4) + rb"{0,1000}+")
_STRING = rb'"' + _CHARS % (128, rb"[0-9A-Fa-f]" * 4) + rb"{0,256}+"
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)")
_DIGITS = re.compile(rb"[0-9]++")
_HEX = re.compile(rb"[0-9A-Fa-f]{0,4}")
_LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_NUMBER_STARTS = frozenset(b"-0123456789")
_CLOSER = {ord("{"): ord("}"), ord("["): ord("]")}

# A run of plain values is skipped in one match. It ends at the first value that may be invalid: single steps check it.
_PLAIN = _STRING + rb'"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?![.eE0-9])|true|false|null'
_S = rb"[ \t\r\n]*+"
_MOST = 250  # values in a run: each takes memory until it has ended, and a match holds the loop from any thread
_RUN = {
    ord("["): re.compile(rb"(?:%b,%b(?:%b)){1,%d}" % (_S, _S, _PLAIN, _MOST)),
    ord("{"): re.compile(rb'(?:%b,%b%b"%b:%b(?:%b)){1,%d}' % (_S, _S, _STRING, _S, _S, _PLAIN, _MOST)),
}


class EndOfBody(BadRequest):
    """The body is empty or white space. Native routes answer `missing request body`, `/v1` answers `EOF`."""

    def __init__(self) -> None:
        super().__init__("EOF")


class Span(NamedTuple):
    """A direct child of the scanned value: its key as written, with quotes (b"" in an array), and its position."""

    key: bytes
    start: int
    end: int


def scan(text: bytes) -> list[Span]:
    """Return the children of the first JSON value in `text`; [] if it is not a container.

    Trailing characters are ignored.

    Raise EndOfBody, or BadRequest with Go's error text.
    """
    scanner = _Scanner(text)
    scanner.run()
    return scanner.children


def scan_first(text: bytes) -> Span:
    """Return the position of the first JSON value in `text`, without a key. Raise like `scan`."""
    return _Scanner(text).run()


class _Scanner:
    __slots__ = ("children", "key", "stack", "started", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.stack = bytearray()  # the open brackets
        self.children: list[Span] = []
        self.key = b""
        self.started = 0

    def run(self) -> Span:
        begin = pos = self._skip(0)
        if pos == len(self.text):
            raise EndOfBody
        for _ in range(_MAX_STEPS):
            opener = self._at(pos)
            if opener in _CLOSER:
                is_empty, pos = self._open(pos, opener)
                if not is_empty:
                    continue
            else:
                pos = self._plain(pos, opener)
            pos = self._after(pos)
            if not self.stack:
                return Span(b"", begin, pos)
        raise BadRequest("the request body has too many values for the slow JSON parser")

    def _open(self, pos: int, opener: int) -> tuple[bool, int]:
        """Open a container.

        Return (True, the position after it) if it is empty, else (False, where its first value begins).
        """
        self.stack.append(opener)
        if len(self.stack) > _MAX_DEPTH:
            raise self._error(pos, "exceeded max depth")
        pos = self._skip(pos + 1)
        if self._at(pos) == _CLOSER[opener]:
            self.stack.pop()
            return True, pos + 1
        return False, self._next(pos)

    def _next(self, pos: int) -> int:
        """Read the key if the container is an object, and return where the next value begins."""
        if self.stack[-1] == ord("{"):
            key_start = pos
            if self._at(pos) != ord('"'):
                raise self._error(pos, "looking for beginning of object key string")
            pos = self._string(pos)
            key_end, pos = pos, self._skip(pos)
            if self._at(pos) != ord(":"):
                raise self._error(pos, "after object key")
            pos = self._skip(pos + 1)
            if len(self.stack) == 1:
                self.key = self.text[key_start:key_end]
        if len(self.stack) == 1:
            self.started = pos
        return pos

    def _after(self, pos: int) -> int:
        """Close every container that ends after the value that ended at `pos`. Return where the next value begins."""
        while self.stack:
            opener = self.stack[-1]
            if len(self.stack) == 1:
                self.children.append(Span(self.key, self.started, pos))
            else:
                pos = self._run(pos, opener)
            pos = self._skip(pos)
            char = self._at(pos)
            if char == ord(","):
                return self._next(self._skip(pos + 1))
            if char != _CLOSER[opener]:
                raise self._error(pos, f"after {'object key:value pair' if opener == ord('{') else 'array element'}")
            self.stack.pop()
            pos += 1
        return pos

    def _run(self, pos: int, opener: int) -> int:
        """Return the position after the plain values that follow."""
        while run := _RUN[opener].match(self.text, pos):
            pos = run.end()
        return pos

    def _plain(self, pos: int, first: int) -> int:
        if first == ord('"'):
            return self._string(pos)
        if first in _NUMBER_STARTS:
            return self._number(pos)
        if first not in _LITERALS:
            raise self._error(pos, "looking for beginning of value")
        word = _LITERALS[first]
        for offset, expected in enumerate(word):
            if self._at(pos + offset) != expected:
                raise self._error(pos + offset, f"in literal {word.decode()} (expecting '{chr(expected)}')")
        return pos + len(word)

    def _string(self, pos: int) -> int:
        start, pos = pos, pos + 1
        while start < pos:
            match = _IN_STRING.match(self.text, start := pos)
            assert match is not None
            pos = match.end()
        char = self._at(pos)
        if char == ord('"'):
            return pos + 1
        if char != ord("\\"):
            raise self._error(pos, "in string literal")
        if self._at(pos + 1) != ord("u"):
            raise self._error(pos + 1, "in string escape code")
        hexadecimal = _HEX.match(self.text, pos + 2)
        assert hexadecimal is not None
        raise self._error(hexadecimal.end(), "in \\u hexadecimal character escape")

    def _number(self, pos: int) -> int:
        match = _INTEGER.match(self.text, pos)
        if match is None:
            raise self._error(pos + 1, "in numeric literal")
        pos = match.end()
        if self.text[pos : pos + 1] == b".":
            pos = self._digits(pos + 1, "after decimal point in numeric literal")
        if self.text[pos : pos + 1] in (b"e", b"E"):
            pos += 2 if self.text[pos + 1 : pos + 2] in (b"+", b"-") else 1
            pos = self._digits(pos, "in exponent of numeric literal")
        return pos

    def _digits(self, pos: int, context: str) -> int:
        match = _DIGITS.match(self.text, pos)
        if match is None:
            raise self._error(pos, context)
        return match.end()

    def _skip(self, pos: int) -> int:
        match = _SPACE.match(self.text, pos)
        assert match is not None
        return match.end()

    def _at(self, pos: int) -> int:
        if pos >= len(self.text):
            raise BadRequest("unexpected EOF")
        return self.text[pos]

    def _error(self, pos: int, context: str) -> BadRequest:
        return BadRequest(f"invalid character {_quoted_char(self._at(pos))} {context}")


def _quoted_char(char: int) -> str:
    """Quote one byte like Go's decoder: as the Latin-1 character of that number, in single quotes."""
    if char == ord("'"):
        return "'\\''"
    if char == ord('"'):
        return "'\"'"
    return f"'{go_quoted(chr(char))[1:-1]}'"
