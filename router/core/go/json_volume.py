"""How many values a JSON text holds: what bounds the work that reading it takes, which its bytes do not."""

from __future__ import annotations

import re
from itertools import takewhile
from operator import itemgetter

from router.core.go.json_scan import STEP_BYTES

# Everything up to the next separator outside of strings. A separator precedes each value but the first.
_UP_TO_SEPARATOR = re.compile(rb'(?:[^",\[{]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))*+([,\[{]|\Z)', re.DOTALL)
_STRINGS_THAT_END = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+\Z', re.DOTALL)
_REST_OF_STRING = re.compile(rb'((?:[^"\\]++|\\.)*+)("?)', re.DOTALL)


def separators(text: bytes, most: int) -> int:
    """Return the number of commas and opening brackets in `text`, also those within strings; stop beyond `most`."""
    count = 0
    for start in range(0, len(text), STEP_BYTES):
        piece = text[start : start + STEP_BYTES]
        count += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if count > most:
            break
    return count


def count_of(text: bytes | memoryview, mark: bytes) -> int:
    """Return how often `mark` occurs in `text`; in steps, so that other threads get their turn."""
    size = STEP_BYTES + len(mark) - 1
    return sum(bytes(text[start : start + size]).count(mark) for start in range(0, len(text), STEP_BYTES))


def has_more_values(text: bytes, most: int) -> bool:
    """Return whether `text` holds more than `most` values at all depths; linear, and at most `most` matches."""
    if len(text) <= most or separators(text, most) < most:
        return False
    count, pos = 1, 0
    while pos < len(text) and count <= most:
        more, pos, is_in_string = _values(text, pos, most - count)
        count += more
        if is_in_string:
            pos = _after_string(text, pos)
    return count > most


def _values(text: bytes, start: int, most: int) -> tuple[int, int, bool]:
    """Return the separators of one step, at most one more than `most`, where it ends, and if that is in a string."""
    count, pos, limit = 0, start, min(start + STEP_BYTES, len(text))
    for found in takewhile(itemgetter(1), _UP_TO_SEPARATOR.finditer(text, start, limit)):
        count, pos = count + 1, found.end()
        if count > most:
            return count, pos, False
    if _STRINGS_THAT_END.match(text, pos, limit):
        return count, limit, False
    piece = text[pos:limit]
    is_cut = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1  # an escape
    return count, limit - is_cut, True


def _after_string(text: bytes, pos: int) -> int:
    """Return where a string ends, of which `pos` is within; the end of the text if it does not."""
    while (found := _REST_OF_STRING.match(text, pos, pos + STEP_BYTES)) and found.end() > pos and not found[2]:
        pos = found.end()
    return found.end() if found and found[2] else len(text)
