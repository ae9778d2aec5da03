"""A bound for JSON of an upstream: its values become objects, which take far more time and memory than its bytes.

Decoding is one step that nothing interrupts, in whichever thread, so the bound is checked before it.
"""

from __future__ import annotations

MOST_LISTS, MOST_VALUES = 40_000, 500_000
"""Lists and objects, and values of all kinds, in one answer: a list of ten thousand models has no more."""


def has_too_many(content: bytes | memoryview) -> bool:
    """Return True if `content` may have more values than an answer needs: brackets and commas in texts count, too."""
    data = bytes(content)
    if len(data) <= MOST_LISTS or data[:1] == b'"':
        return False
    return data.count(b"[") + data.count(b"{") > MOST_LISTS or data.count(b",") > MOST_VALUES
