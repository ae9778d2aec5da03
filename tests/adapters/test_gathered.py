"""A body that comes in pieces is whole at its end, and no buffer of it is larger than a block and a piece."""

from __future__ import annotations

import pytest

from router.adapters.gathered import BLOCK_BYTES, Gathered


@pytest.mark.parametrize("pieces", [[], [b""], [b"a", b"bc"], [b"x" * BLOCK_BYTES, b"y"], [b"abc" * 1000] * 1000])
async def test_the_pieces_make_the_body(pieces: list[bytes]) -> None:
    """None of them, and more than fit into a block."""
    gathered = Gathered()
    for piece in pieces:
        gathered.add(piece)
    assert gathered.size == sum(map(len, pieces))
    assert await gathered.whole() == b"".join(pieces)


def test_blocks_stay_short() -> None:
    """A growing buffer is copied now and then, all of it at once."""
    gathered = Gathered()
    for _ in range(100_000):
        gathered.add(b"x" * 100)
    assert max(map(len, gathered._full)) < BLOCK_BYTES + 100
