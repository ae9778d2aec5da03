"""Bodies that are compressed, or in pieces."""

from __future__ import annotations

import pytest
import zstandard

from router.api.beside import in_turn
from router.api.bodies import MOST_FRAMES, in_one, is_zstd, unzstd
from router.errors import BadRequest, BodyTooLarge

TEXT = b"word " * 50_000


def test_a_body_in_pieces_is_the_same_in_one() -> None:
    """Long pieces are copied in steps."""
    assert in_one(TEXT) is TEXT
    assert in_one([b"{", TEXT, b"}"]) == b"{" + TEXT + b"}"


def test_a_compressed_body_is_read_frame_by_frame_as_far_as_it_may_go() -> None:
    """Raises what its client is told beyond that."""
    packed = zstandard.compress(TEXT)
    assert unzstd(packed * 2, 2 * len(TEXT)) == TEXT * 2
    with pytest.raises(BodyTooLarge):
        unzstd(packed, len(TEXT) - 1)
    with pytest.raises(BadRequest, match=f"more than {MOST_FRAMES} frames"):
        unzstd(zstandard.compress(b"x") * (MOST_FRAMES + 1), len(TEXT))
    with pytest.raises(BadRequest, match="magic number mismatch"):
        unzstd(b"plain", 9)
    with pytest.raises(BadRequest, match="invalid input: "):
        unzstd(packed[:9] + b"\xff" * 9, len(TEXT))


@pytest.mark.parametrize(("encoding", "found"), [(b"zstd", True), (b" ZSTD ", True), (b"gzip", False), (b"", False)])
def test_only_one_encoding_is_read(encoding: bytes, found: bool) -> None:
    """Ollama ignores all others."""
    assert is_zstd(encoding) is found


@pytest.mark.parametrize("inline_bytes", [1, 100])
async def test_long_bodies_are_worked_on_beside_the_loop(inline_bytes: int) -> None:
    """Short ones at once; with the same result."""
    assert await in_turn(b"abc", inline_bytes, bytes.upper) == b"ABC"
