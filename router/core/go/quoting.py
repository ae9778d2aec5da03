"""Trim and quote text like Go (`strings.TrimSpace`, `%q`)."""

from __future__ import annotations

# What Go's strings.TrimSpace removes; str.strip() would also take \x1c to \x1f.
GO_SPACE = " \t\n\v\f\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_ESCAPES |= {'"': r"\"", "\\": r"\\"}


MOST_QUOTED = 1024
"""Number of characters of a client's text that an error text repeats. Go repeats all of it, however long it is."""


def brief(text: str) -> str:
    """Return `text`, cut with an ellipsis after `MOST_QUOTED` characters: an error text is logged and sent."""
    return text if len(text) <= MOST_QUOTED else text[:MOST_QUOTED] + "…"


def go_quoted(text: str) -> str:
    """Return `text` as Go's `%q` prints it, for error texts that must equal Ollama's. A long text is cut."""
    return '"' + "".join(map(_go_escape, brief(text))) + '"'


def _go_escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xD800 <= code < 0xE000:  # no such rune in a Go string
        return "\ufffd"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
