"""The digests of what is installed, of which a list may have thousands: others get their turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice

from router.core.ollama.derived_names import by_piece
from router.core.ollama.names import is_name, key_of

ROWS_AT_ONCE, PIECES_AT_ONCE = 200, 1000
"""Rows of a list and digests of installed models that are looked at in one step."""


async def digests_of(rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return the digests of the rows of `/api/tags` by the canonical names; of thousands in steps."""
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, digest = str(row.get("name") or row.get("model") or ""), str(row.get("digest") or "")
        if is_name(name):
            found[key_of(name)] = digest
        if number % ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return found


async def pieces_of(digests: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of models by the pieces of their digests; of thousands in steps."""
    found: dict[str, list[str]] = {}
    rest = iter(digests.items())
    while part := dict(islice(rest, PIECES_AT_ONCE)):
        for piece, names in by_piece(part).items():
            found.setdefault(piece, []).extend(names)
        await asyncio.sleep(0)
    return found
