"""The installed model that a misspelt name probably means. Cheap, because anybody may send any name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LETTERS, MOST_COMPARED = 64, 64
"""Of a name, and names that are compared in full."""

_CUTOFF, _LENGTHS = 0.75, 6


def nearest(name: str, installed: Iterable[str]) -> str:
    """Return the one of `installed` that is like `name`, "" if none is, or too long to be a misspelt one."""
    asked = _short(name)
    if not 0 < len(asked) <= MOST_LETTERS:
        return ""
    alike: dict[str, str] = {}
    for one in installed:
        short = _short(one)
        if abs(len(short) - len(asked)) <= _LENGTHS and short[:1] == asked[0]:
            alike[short] = one
            if len(alike) >= MOST_COMPARED:
                break
    near = difflib.get_close_matches(asked, alike, n=1, cutoff=_CUTOFF)
    return alike[near[0]] if near else ""


def _short(name: str) -> str:
    return name.lower().removesuffix(":latest")
