"""Request bodies under their limits (size, idle time, total time), and zstd where Ollama accepts it."""

from __future__ import annotations

import asyncio
from io import BytesIO

import zstandard

from router.api.budget import Holding
from router.core.go.json_volume import count_of
from router.errors import BadRequest, BodyTooLarge, RequestTimeout
from router.http.client.outgoing import Body, slices_of
from router.http.server.cycle import Cycle

MAX_WINDOW_BYTES = 8 << 20
MOST_FRAMES = 1024
_CHUNK_BYTES = 256 << 10
_FRAME, _SKIPPED_FRAME = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"  # how they begin, and what a skippable one holds


async def read_body(cycle: Cycle, *, limit_bytes: int, idle_s: float, total_s: float, held: Holding) -> bytes:
    """Return the whole body. Raises BodyTooLarge at the first byte beyond the limit, RequestTimeout, or ClientGone.

    Raises Busy if the budget that `held` is a part of has no room for it.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + total_s
    received = BytesIO()  # it grows in steps, none of which copies all of it
    size = 0
    try:
        while True:
            # Two deadlines: the idle one ends a stall, the total one a client that sends a byte now and then.
            async with asyncio.timeout_at(min(until_s, loop.time() + idle_s)) as held.arriving:
                part = await cycle.read()
            held.arriving = None
            if not part:
                return received.getvalue()
            size += len(part)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            held.claim(len(part))
            received.write(part)
    except TimeoutError:
        if held.is_ended:
            raise held.busy() from None
        raise RequestTimeout("the request's body did not arrive in time") from None
    finally:
        held.arriving = None


def in_one(body: Body) -> bytes:
    """Return a body in one piece; copied in steps, so that other threads get their turn."""
    if isinstance(body, bytes):
        return body
    joined = BytesIO()
    for piece in body:
        for step in slices_of(piece):
            joined.write(step)
    return joined.getvalue()


class BodyStream:
    """A body that is relayed while it arrives (uploads): an async iterator with an idle timeout and no size limit."""

    def __init__(self, cycle: Cycle, idle_s: float) -> None:
        self._cycle = cycle
        self._idle_s = idle_s

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        try:
            async with asyncio.timeout(self._idle_s):
                part = await self._cycle.read()
        except TimeoutError:
            raise RequestTimeout("the request's body did not arrive in time") from None
        if not part:
            raise StopAsyncIteration
        return part


def too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request's body is larger than {limit_bytes} bytes")


def is_zstd(encoding: bytes) -> bool:
    """Return whether a Content-Encoding is zstd, the only one that Ollama decodes; it ignores the header otherwise."""
    return encoding.strip().lower() == b"zstd"


def unzstd(body: bytes, limit_bytes: int) -> bytes:
    """Return the decompressed body. Raises BadRequest, or BodyTooLarge for more than `limit_bytes`."""
    if count_of(body, _FRAME) + count_of(body, _SKIPPED_FRAME) > MOST_FRAMES:
        raise BadRequest(f"invalid input: more than {MOST_FRAMES} frames")
    # The window bounds the memory, and the loop below the output, before a bomb has expanded.
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(body, read_across_frames=True)
    unpacked = BytesIO()
    size = 0
    try:
        while part := reader.read(_CHUNK_BYTES):
            size += len(part)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            unpacked.write(part)
    except zstandard.ZstdError as exc:
        magic = not body.startswith(b"\x28\xb5\x2f\xfd")
        raise BadRequest("invalid input: magic number mismatch" if magic else f"invalid input: {exc}") from exc
    return unpacked.getvalue()
