"""Go's durations (`time.ParseDuration`): "5m", "1h30m", "-1.5s", "0"."""

from __future__ import annotations

import re

from router.core.go.quoting import brief
from router.errors import BadRequest

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_MAX_NS = 1 << 63
_MOST_PARTS = 1000  # Go takes any number of them: 100,000 would take a tenth of a second
_AMOUNT = re.compile(r"([0-9]*)(?:\.([0-9]*))?")
_UNIT = re.compile(r"[^.0-9]*")


def parse_duration_ns(text: str) -> int:
    """Return the duration in nanoseconds. Raise BadRequest with Go's error text if it is invalid or exceeds 64 bits."""
    negative = text.startswith("-")
    pos = 1 if text[:1] in ("-", "+") else 0
    if text[pos : pos + 2] == "0" or len(text) == pos:
        return _zero(text, pos)
    total = 0
    for _ in range(_MOST_PARTS):  # by position: cutting off each part would copy the rest as often as there are parts
        part, pos = _part(text, pos)
        total += part
        if total > _MAX_NS:
            raise _invalid(text)
        if pos == len(text):
            break
    else:
        raise _invalid(text)
    if not negative and total == _MAX_NS:
        raise _invalid(text)
    return -total if negative else total


def _zero(text: str, pos: int) -> int:
    """Return 0 for "0", the only amount that needs no unit."""
    if len(text) == pos:
        raise _invalid(text)
    return 0


def _part(text: str, pos: int) -> tuple[int, int]:
    """Return the amount with its unit at `pos`, in nanoseconds, and the position after it."""
    match = _AMOUNT.match(text, pos)
    assert match is not None
    whole, fraction = match[1], match[2] or ""
    if not whole and not fraction:
        raise _invalid(text)
    unit = _UNIT.match(text, match.end())
    assert unit is not None
    if not unit[0]:
        raise BadRequest(f"time: missing unit in duration {_quoted(text)}")
    if unit[0] not in _UNITS_NS:
        raise BadRequest(f"time: unknown unit {_quoted(unit[0])} in duration {_quoted(text)}")
    digits = whole.lstrip("0")
    if len(digits) > 19 or int(digits or 0) > _MAX_NS:
        raise _invalid(text)
    scale = _UNITS_NS[unit[0]]
    fraction = fraction[:18]  # Go stops at 63 bits; a nanosecond needs 13 digits of an hour
    parts = int(digits or 0) * scale + (int(int(fraction) * (scale / 10 ** len(fraction))) if fraction else 0)
    if parts > _MAX_NS:
        raise _invalid(text)
    return parts, unit.end()


def _invalid(text: str) -> BadRequest:
    return BadRequest(f"time: invalid duration {_quoted(text)}")


def _quoted(text: str) -> str:
    """Quote like Go's time package: bytes that are not printable ASCII in hexadecimal. A long text is cut."""
    quoted = []
    for char in brief(text):
        if char in '"\\':
            quoted.append("\\" + char)
        elif " " <= char < "\x80":
            quoted.append(char)
        else:
            quoted.extend(f"\\x{byte:02x}" for byte in char.encode("utf-8", "replace"))
    return '"' + "".join(quoted) + '"'
