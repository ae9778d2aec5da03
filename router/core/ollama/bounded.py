"""A bound for JSON of an upstream: its values become objects, which take far more time and memory than its bytes.

Decoding is one step that nothing interrupts, in whichever thread, so the bound is checked before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from router.core.go.json_keys import LONG_BYTES, elements, split
from router.core.go.json_scan import STEP_BYTES, start_of
from router.errors import BadRequest

MOST_LISTS, MOST_VALUES = 40_000, 500_000
"""Lists and objects, and values of all kinds, in one answer: a list of ten thousand models has no more."""


def has_too_many(content: bytes | memoryview) -> bool:
    """Return True if `content` may have more values than an answer needs: brackets and commas in texts count, too."""
    if len(content) <= MOST_LISTS or bytes(content[:1]) == b'"':
        return False
    lists = values = 0
    for start in range(0, len(content), STEP_BYTES):  # in steps, so that other threads get their turn
        data = bytes(content[start : start + STEP_BYTES])
        lists, values = lists + data.count(b"[") + data.count(b"{"), values + data.count(b",")
        if lists > MOST_LISTS or values > MOST_VALUES:
            return True
    return False


def members(content: bytes | memoryview) -> dict[str, memoryview]:
    """Return the members of an object. Raise msgspec.DecodeError for what is none, or has very many."""
    at = start_of(content)
    if bytes(content[at : at + 1]) != b"{":
        raise msgspec.DecodeError("not a JSON object")
    try:
        return dict(split(content))
    except BadRequest as error:
        raise msgspec.DecodeError(error.message) from error


def value(view: memoryview, kept: Callable[[Any], Any] = lambda item: item) -> Any:
    """Return a valid value; a list is read element by element: in one step it would hold the loop from any thread.

    Of each element of a list `kept` returns what is kept. Raise msgspec.DecodeError for a value that is longer than
    anybody's.
    """
    if bytes(view[:1]) == b"[":
        return [kept(_short(item)) for item in elements(view)]
    return _short(view)


def _short(view: memoryview) -> Any:
    if len(view) > LONG_BYTES:
        raise msgspec.DecodeError("a value that nobody writes")
    return msgspec.json.decode(view)
