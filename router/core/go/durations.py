"""Go's durations (`time.ParseDuration`): "5m", "1h30m", "-1.5s", "0"."""

from __future__ import annotations

import re

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
_AMOUNT = re.compile(r"([0-9]*)(?:\.([0-9]*))?")
_UNIT = re.compile(r"[^.0-9]*")


def parse_duration_ns(text: str) -> int:
    """Return the duration in nanoseconds. Raise BadRequest with Go's error text if it is invalid or exceeds 64 bits."""
    negative = text.startswith("-")
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest:
        raise _invalid(text)
    total = 0
    while rest:
        part, rest = _part(text, rest)
        total += part
        if total > _MAX_NS:
            raise _invalid(text)
    if not negative and total == _MAX_NS:
        raise _invalid(text)
    return -total if negative else total


def _part(text: str, rest: str) -> tuple[int, str]:
    """Return the first amount with its unit, in nanoseconds, and the remaining text."""
    match = _AMOUNT.match(rest)
    assert match is not None
    whole, fraction = match[1], match[2] or ""
    if not whole and not fraction:
        raise _invalid(text)
    rest = rest[match.end() :]
    unit = _UNIT.match(rest)
    assert unit is not None
    if not unit[0]:
        raise BadRequest(f"time: missing unit in duration {_quoted(text)}")
    if unit[0] not in _UNITS_NS:
        raise BadRequest(f"time: unknown unit {_quoted(unit[0])} in duration {_quoted(text)}")
    if len(whole.lstrip("0")) > 19 or int(whole or 0) > _MAX_NS:
        raise _invalid(text)
    scale = _UNITS_NS[unit[0]]
    digits = fraction[:18]  # Go stops at 63 bits; a nanosecond needs 13 digits of an hour
    parts = int(whole or 0) * scale + (int(int(digits) * (scale / 10 ** len(digits))) if digits else 0)
    if parts > _MAX_NS:
        raise _invalid(text)
    return parts, rest[unit.end() :]


def _invalid(text: str) -> BadRequest:
    return BadRequest(f"time: invalid duration {_quoted(text)}")


def _quoted(text: str) -> str:
    """Quote like Go's time package: bytes that are not printable ASCII in hexadecimal."""
    quoted = []
    for char in text:
        if char in '"\\':
            quoted.append("\\" + char)
        elif " " <= char < "\x80":
            quoted.append(char)
        else:
            quoted.extend(f"\\x{byte:02x}" for byte in char.encode("utf-8", "replace"))
    return '"' + "".join(quoted) + '"'
