"""A body that comes in pieces, made whole at its end without holding the loop."""

from __future__ import annotations

import asyncio
from io import BytesIO

BLOCK_BYTES = 1 << 20
"""A buffer that grows beyond this would be copied, at some size all of it at once."""


class Gathered:
    """The pieces of a body, in blocks: any number of small pieces takes little more memory than their bytes."""

    __slots__ = ("_block", "_full", "size")

    def __init__(self) -> None:
        self._full: list[bytes] = []
        self._block = BytesIO()
        self.size = 0

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        self._block.write(piece)
        self.size += len(piece)
        if self._block.tell() >= BLOCK_BYTES:
            self._full.append(self._block.getvalue())
            self._block = BytesIO()

    async def whole(self) -> bytes:
        """Return the body; a long one is joined in a thread, which holds nothing up meanwhile."""
        blocks = [*self._full, self._block.getvalue()]
        if len(blocks) == 1:
            return blocks[0]
        self._full.clear()
        return await asyncio.to_thread(b"".join, blocks)
