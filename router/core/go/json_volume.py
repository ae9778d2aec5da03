"""How many values a JSON text holds: what bounds the work that reading it takes, which its bytes do not."""

from __future__ import annotations

import re
from itertools import islice

_PIECE_BYTES = 1 << 20
# Everything up to the next separator outside of strings. A separator precedes each value but the first.
_UP_TO_SEPARATOR = re.compile(rb'(?:[^",\[{]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))*+(?:[,\[{]|\Z)', re.DOTALL)


def separators(text: bytes, most: int) -> int:
    """Return the number of commas and opening brackets in `text`, also those within strings; stop beyond `most`."""
    count = 0
    for start in range(0, len(text), _PIECE_BYTES):  # in pieces, so that other threads get their turn
        piece = text[start : start + _PIECE_BYTES]
        count += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if count > most:
            break
    return count


def has_more_values(text: bytes, most: int) -> bool:
    """Return whether `text` holds more than `most` values at all depths; linear, and at most `most` steps."""
    if len(text) <= most or separators(text, most) < most:
        return False
    found = islice(_UP_TO_SEPARATOR.finditer(text), most)
    return 1 + sum(one.end() != len(text) for one in found) > most
