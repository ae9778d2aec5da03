"""Bodies to be sent: in one piece, in several that are not joined, or as a stream.

A long one is handed over in steps, as the upstream takes it: to encrypt or to copy all of it would hold the loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

Pieces = list[bytes | memoryview]
Body = bytes | Pieces

LARGE_BYTES = 65536
"""Bodies of at least this size are passed to the transport without a copy."""

STEP_BYTES = 256 << 10
"""Of what is handed over at once."""


def size_of(body: Body) -> int:
    """Return the number of its bytes."""
    return len(body) if isinstance(body, bytes) else sum(map(len, body))


def is_long(body: Body) -> bool:
    """Return whether `body` is to be sent in steps."""
    return not isinstance(body, bytes) or len(body) > STEP_BYTES


async def steps_of(body: Body) -> AsyncIterator[bytes | memoryview]:
    """Yield `body` in steps: small pieces together, long ones in slices that are not copied."""
    small = bytearray()
    for piece in [body] if isinstance(body, bytes) else body:
        if len(piece) < LARGE_BYTES:
            small += piece
        if small and (len(piece) >= LARGE_BYTES or len(small) >= LARGE_BYTES):
            yield bytes(small)
            small.clear()
        for step in slices_of(piece) if len(piece) >= LARGE_BYTES else ():
            yield step
    if small:
        yield bytes(small)


def slices_of(piece: bytes | memoryview) -> Sequence[memoryview]:
    """Return views of all of it."""
    view = memoryview(piece)
    return [view[start : start + STEP_BYTES] for start in range(0, len(view), STEP_BYTES)]
