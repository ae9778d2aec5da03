"""A JSON scanner that agrees with Go's `encoding/json` on what is valid and on the text of each error.

It is the slow path for what msgspec rejects. Some of that Go accepts (lone surrogates, deep nesting, invalid UTF-8 in a
key); for the rest the scanner raises Go's error. It also reads what is long, where one step of msgspec would hold the
interpreter, from whichever thread: no step of the scanner reads more than `STEP_BYTES`. It never recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from router.core.go.quoting import go_quoted
from router.errors import BadRequest

Text = bytes | memoryview

STEP_BYTES = 64 << 10
"""Most bytes that one match reads: nothing interrupts it."""

MOST_KEY_BYTES = 8 << 10
"""Of a key, with quotes; of a longer one, which nobody has, the scanner gives a little more than that."""

_MAX_DEPTH = 10_000  # Go's own limit
# A body that takes more steps (about a second of work) is rejected as an attack. A run of values is one step.
_MAX_STEPS = 1_000_000

# Python before 3.11.5 (Debian 12 has 3.11.2) forgets where a group in `(…)*+` began if it fails after a repetition or a
# choice within it (gh-106052). So such a group has neither, but alternatives that fail at a character.
_SPACE = re.compile(rb"[ \t\r\n]*+")
_CHARS = rb'(?:[^"\\\x00-\x1f]{1,%d}+|\\["\\/bfnrt]|\\u%b)'
_IN_STRING = re.compile(_CHARS % (4096, rb"[0-9A-Fa-f]" * 4) + rb"*+")
_STRING = rb'"' + _CHARS % (128, rb"[0-9A-Fa-f]" * 4) + rb"*+" + rb'"'
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)")
_DIGITS = re.compile(rb"[0-9]*+")
_HEX = re.compile(rb"[0-9A-Fa-f]{0,4}")
_LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_NUMBER_STARTS = frozenset(b"-0123456789")
_CLOSER = {ord("{"): ord("}"), ord("["): ord("]")}
_CONTROL = bytes(range(0x20))
_ESCAPE_BYTES = 6
_LONG_BYTES = 1024  # of a piece of a string that is worth looking for its end

# A run of values is skipped in one match: of plain ones, and of small containers of plain ones. It ends at the first
# value that may be invalid, or that is cut at the end of the step: single steps read it.
_PLAIN = _STRING + rb"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?=[^.eE0-9])|true|false|null"
_S = rb"[ \t\r\n]*+"
_MOST, _FEW = 250, 16  # values in a run and in a small container: each takes memory until the match has ended
_MEMBER = rb"%b%b:%b(?:%b)" % (_STRING, _S, _S, _PLAIN)
_LIST = rb"\[%b(?:(?:%b)(?:%b,%b(?:%b)){0,%d}%b)?\]" % (_S, _PLAIN, _S, _S, _PLAIN, _FEW, _S)
_OBJECT = rb"\{%b(?:%b(?:%b,%b%b){0,%d}%b)?\}" % (_S, _MEMBER, _S, _S, _MEMBER, _FEW, _S)
_VALUE = rb"(?:%b|%b|%b)" % (_PLAIN, _OBJECT, _LIST)
_RUN = {
    ord("["): re.compile(rb"(?:%b,%b%b){1,%d}" % (_S, _S, _VALUE, _MOST)),
    ord("{"): re.compile(rb"(?:%b,%b%b%b:%b%b){1,%d}" % (_S, _S, _STRING, _S, _S, _VALUE, _MOST)),
}


class EndOfBody(BadRequest):
    """The body is empty or white space. Native routes answer `missing request body`, `/v1` answers `EOF`."""

    def __init__(self) -> None:
        super().__init__("EOF")


class Span(NamedTuple):
    """A direct child of the scanned value: its key as written, with quotes (b"" in an array), and its position.

    With `is_run` it is several of them instead, with their keys, and with the commas between them.
    """

    key: bytes
    start: int
    end: int
    is_run: bool = False


def scan(text: Text) -> list[Span]:
    """Return the children of the first JSON value in `text`; [] if it is not a container.

    Trailing characters are ignored.

    Raise EndOfBody, or BadRequest with Go's error text.
    """
    return list(_Scanner(text).run())


def scan_runs(text: Text) -> Iterator[Span]:
    """Yield the same, as far as possible as runs of at most `STEP_BYTES` and with less work."""
    return _Scanner(text, by_runs=True).run()


def scan_first(text: Text) -> Span:
    """Return the position of the first JSON value in `text`, without a key. Raise like `scan`."""
    scanner = _Scanner(text, by_runs=True)
    for _ in scanner.run():
        pass
    return scanner.whole


def start_of(text: Text) -> int:
    """Return where the first value of `text` begins."""
    return _past(_SPACE, text, 0)


def end_of_start(text: Text, most_bytes: int) -> int:
    """Return where to cut a valid JSON string so that its beginning is one, but for a quote; before `most_bytes`."""
    found = _IN_STRING.match(text, 1, most_bytes)
    return found.end() if found is not None else 1


def _past(pattern: re.Pattern[bytes], text: Text, pos: int) -> int:
    """Return the position after all that `pattern`, a repetition, matches at `pos`."""
    while True:
        found = pattern.match(text, pos, pos + STEP_BYTES)
        assert found is not None
        if found.end() < pos + STEP_BYTES:
            return found.end()
        pos = found.end()


class _Scanner:
    __slots__ = ("by_runs", "children", "key", "stack", "started", "text", "whole")

    def __init__(self, text: Text, *, by_runs: bool = False) -> None:
        self.text = text
        self.by_runs = by_runs
        self.stack = bytearray()  # the open brackets
        self.children: list[Span] = []  # those that were found and not yielded yet
        self.key = b""
        self.started = 0
        self.whole = Span(b"", 0, 0)

    def run(self) -> Iterator[Span]:
        """Yield the children; then `whole` is the position of the value."""
        begin = pos = start_of(self.text)
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
            if self.children:
                yield from self.children
                self.children.clear()
            if not self.stack:
                self.whole = Span(b"", begin, pos)
                return
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
                self.key = bytes(self.text[key_start : min(key_end, key_start + MOST_KEY_BYTES + 1)])
        if len(self.stack) == 1:
            self.started = pos
        return pos

    def _after(self, pos: int) -> int:
        """Close every container that ends after the value that ended at `pos`. Return where the next value begins."""
        while self.stack:
            opener = self.stack[-1]
            if len(self.stack) == 1:
                self.children.append(Span(self.key, self.started, pos))
            if len(self.stack) > 1 or self.by_runs:
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
        """Return the position after the runs that follow."""
        pattern, is_outermost = _RUN[opener], len(self.stack) == 1
        while run := pattern.match(self.text, pos, pos + STEP_BYTES):
            if is_outermost:
                self.children.append(Span(b"", self._skip(pos) + 1, run.end(), is_run=True))
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
        start, pos = pos, self._escaped(pos + 1)
        while pos - start > STEP_BYTES - _ESCAPE_BYTES:  # there may be more of it
            start = self._unescaped(pos)
            pos = self._escaped(start)
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

    def _escaped(self, pos: int) -> int:
        """Return the position after what is valid in a string, as far as one step goes."""
        match = _IN_STRING.match(self.text, pos, pos + STEP_BYTES)
        assert match is not None
        return match.end()

    def _unescaped(self, pos: int) -> int:
        """Return the position after what has no escapes in a long string: it is found much faster than matched."""
        end = pos
        while True:
            piece = bytes(self.text[end : end + STEP_BYTES])
            quote = piece.find(b'"')
            stop = piece.find(b"\\", 0, quote if quote >= 0 else len(piece))
            size = next(found for found in (stop, quote, len(piece)) if found >= 0)
            if size < _LONG_BYTES or len(piece[:size].translate(None, _CONTROL)) < size:
                return end
            end += size

    def _number(self, pos: int) -> int:
        match = _INTEGER.match(self.text, pos, pos + STEP_BYTES)
        if match is None:
            raise self._error(pos + 1, "in numeric literal")
        pos = match.end() if match.end() - pos < STEP_BYTES else _past(_DIGITS, self.text, match.end())
        if self.text[pos : pos + 1] == b".":
            pos = self._digits(pos + 1, "after decimal point in numeric literal")
        if self.text[pos : pos + 1] in (b"e", b"E"):
            pos += 2 if self.text[pos + 1 : pos + 2] in (b"+", b"-") else 1
            pos = self._digits(pos, "in exponent of numeric literal")
        return pos

    def _digits(self, pos: int, context: str) -> int:
        end = _past(_DIGITS, self.text, pos)
        if end == pos:
            raise self._error(pos, context)
        return end

    def _skip(self, pos: int) -> int:
        return _past(_SPACE, self.text, pos)

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
