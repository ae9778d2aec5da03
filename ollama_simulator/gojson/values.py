"""JSON as Go's encoding/json reads it: its error texts, its duplicate keys, its silence about what follows.

`parse` gives values (objects as `Object`, so that duplicates stay visible); `gotypes` turns them into requests.
"""

from __future__ import annotations

import json
import re
from typing import Any

SPACE = b" \t\r\n"
MAX_DEPTH = 10_000


class GoError(Exception):
    """An error with the text that Go gives it. `is_eof` is io.EOF: there was no value at all."""

    def __init__(self, text: str, *, is_eof: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.is_eof = is_eof


class Object(list[tuple[str, Any]]):
    """A JSON object as its pairs in order, duplicates included."""


class Number(float):
    """A number that is no integer, with its own text."""

    text: str

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number.text = text
        return number


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=Object, parse_float=Number, parse_constant=_no_constant, strict=True)


def parse(body: bytes) -> Any:
    """The first JSON value of `body`; what follows it is not read. Raises GoError with Go's own text."""
    start = len(body) - len(body.lstrip(SPACE))
    if start == len(body):
        raise GoError("EOF", is_eof=True)
    text = body.decode("utf-8", "replace")
    try:
        value, _ = _DECODER.raw_decode(text, len(body[:start].decode()))
        return value
    except (ValueError, RecursionError):
        _Scanner(body).scan(start)
        raise GoError("unexpected EOF") from None


def quote_char(byte: int) -> str:
    """A byte as Go's scanner prints it: as the rune of that number, quoted."""
    if byte == ord("'"):
        return r"'\''"
    if byte == ord('"'):
        return "'\"'"
    return "'" + quoted(chr(byte))[1:-1] + "'"


def quoted(text: str) -> str:
    """`text` as strconv.Quote writes it."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char in "\a\b\f\n\r\t\v":
            out.append("\\" + "abfnrtv"["\a\b\f\n\r\t\v".index(char)])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


def plain(value: Any) -> Any:
    """`value` as Go's `any` holds it: objects as dicts (the last duplicate wins), numbers as they came."""
    if isinstance(value, Object):
        return {key: plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


_ESCAPES = '": <>&\u2028\u2029'
_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_HTML_PATTERN = re.compile("[<>&\u2028\u2029]")


def dump(value: Any) -> bytes:
    """`value` as json.Marshal writes it: compact, UTF-8, `<`, `>` and `&` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_default)
    text = text.replace("\\b", "\\u0008").replace("\\f", "\\u000c") if "\\b" in text or "\\f" in text else text
    return _HTML_PATTERN.sub(lambda match: _HTML[match[0]], text).encode("utf-8", "replace")


def _default(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


def json_text(value: Any) -> str:
    """Compact JSON for texts inside answers: nothing escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Scanner:
    """Walks a body that is not JSON, to find what Go says of it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def scan(self, at: int) -> int:
        """The end of the value that begins at `at`; raises GoError."""
        return self._value(self._space(at), 0)

    def _space(self, at: int) -> int:
        while at < len(self.body) and self.body[at] in SPACE:
            at += 1
        return at

    def _byte(self, at: int) -> int:
        if at >= len(self.body):
            raise GoError("unexpected EOF")
        return self.body[at]

    def _fail(self, at: int, context: str) -> GoError:
        return GoError(f"invalid character {quote_char(self.body[at])} {context}")

    def _value(self, at: int, depth: int) -> int:
        byte = self._byte(at)
        if depth > 900:
            raise GoError("exceeded max depth")
        if byte == ord("{"):
            return self._object(at + 1, depth + 1)
        if byte == ord("["):
            return self._array(at + 1, depth + 1)
        if byte == ord('"'):
            return self._string(at + 1)
        if byte in b"-0123456789":
            return self._number(at)
        for word in (b"true", b"false", b"null"):
            if byte == word[0]:
                return self._literal(at, word)
        raise self._fail(at, "looking for beginning of value")

    def _object(self, at: int, depth: int) -> int:
        at = self._space(at)
        if self._byte(at) == ord("}"):
            return at + 1
        while True:
            if self._byte(at) != ord('"'):
                raise self._fail(at, "looking for beginning of object key string")
            at = self._space(self._string(at + 1))
            if self._byte(at) != ord(":"):
                raise self._fail(at, "after object key")
            at = self._space(self._value(self._space(at + 1), depth))
            if self._byte(at) == ord("}"):
                return at + 1
            if self._byte(at) != ord(","):
                raise self._fail(at, "after object key:value pair")
            at = self._space(at + 1)

    def _array(self, at: int, depth: int) -> int:
        at = self._space(at)
        if self._byte(at) == ord("]"):
            return at + 1
        while True:
            at = self._space(self._value(at, depth))
            if self._byte(at) == ord("]"):
                return at + 1
            if self._byte(at) != ord(","):
                raise self._fail(at, "after array element")
            at = self._space(at + 1)

    def _string(self, at: int) -> int:
        while (byte := self._byte(at)) != ord('"'):
            if byte < 0x20:
                raise self._fail(at, "in string literal")
            at += 1
            if byte == ord("\\"):
                at = self._escape(at)
        return at + 1

    def _escape(self, at: int) -> int:
        byte = self._byte(at)
        if byte == ord("u"):
            for offset in range(1, 5):
                if self._byte(at + offset) not in b"0123456789abcdefABCDEF":
                    raise self._fail(at + offset, "in \\u hexadecimal character escape")
            return at + 5
        if byte not in b'bfnrt\\/"':
            raise self._fail(at, "in string escape code")
        return at + 1

    def _number(self, at: int) -> int:
        if self.body[at] == ord("-"):
            at += 1
            if self._byte(at) not in b"0123456789":
                raise self._fail(at, "in numeric literal")
        at = at + 1 if self.body[at] == ord("0") else self._digits(at)
        if at < len(self.body) and self.body[at] == ord("."):
            if self._byte(at + 1) not in b"0123456789":
                raise self._fail(at + 1, "after decimal point in numeric literal")
            at = self._digits(at + 1)
        if at < len(self.body) and self.body[at] in b"eE":
            at += 2 if self._byte(at + 1) in b"+-" else 1
            if self._byte(at) not in b"0123456789":
                raise self._fail(at, "in exponent of numeric literal")
            at = self._digits(at)
        return at

    def _digits(self, at: int) -> int:
        while at < len(self.body) and self.body[at] in b"0123456789":
            at += 1
        return at

    def _literal(self, at: int, word: bytes) -> int:
        for offset in range(1, len(word)):
            if self._byte(at + offset) != word[offset]:
                expecting = f"(expecting '{chr(word[offset])}')"
                raise self._fail(at + offset, f"in literal {word.decode()} {expecting}")
        return at + len(word)
