"""Long bodies are sent in steps, whole and in one piece or several."""

from __future__ import annotations

import pytest

from router.http.client.outgoing import LARGE_BYTES, STEP_BYTES, Body, is_long, size_of, steps_of
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from tests.http.raw_upstream import Visit, raw_upstream, reset

LONG = bytes(range(256)) * (5 * STEP_BYTES // 256)
BODIES: list[Body] = [
    LONG,
    [b"{", b'"model":"m"', memoryview(LONG), b"}"],
    [b"x" * 1000] * 2000,
    [LONG, b"y" * LARGE_BYTES, b"", b"z", LONG],
    [b"a"],
    [],
]


def joined(body: Body) -> bytes:
    return body if isinstance(body, bytes) else b"".join(body)


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_no_step_is_long_and_none_is_tiny_f8(body: Body) -> None:
    """Small pieces go together; long ones are not copied."""
    steps = [step async for step in steps_of(body)]
    assert b"".join(steps) == joined(body)
    assert size_of(body) == len(joined(body))
    assert all(len(step) <= max(STEP_BYTES, 2 * LARGE_BYTES) for step in steps)
    assert len(steps) <= 4 + 2 * size_of(body) // LARGE_BYTES
    assert all(isinstance(step, memoryview) for step in steps if len(step) >= 2 * LARGE_BYTES)


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_a_body_in_pieces_arrives_whole_and_is_resent_c1(body: Body) -> None:
    """Like one of one piece, with its length; also when the connection had been closed."""

    async def close_the_second(visit: Visit) -> None:
        if visit.number == 2:
            reset(visit.writer)
            return
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with raw_upstream(close_the_second) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(3):
            response = await relay.open(UpstreamRequest(b"POST", b"/x", body=body, safe_to_resend=True))
            assert await response.read() == b"ok"
            assert await response.read() == b""
        for head, received in upstream.requests:
            assert received == joined(body)
            assert b"content-length: %d\r\n" % size_of(body) in head.lower() + b"\r\n"
        await relay.aclose()


def test_a_short_body_in_one_piece_is_sent_at_once() -> None:
    """As most are."""
    assert not is_long(b"x" * STEP_BYTES)
    assert is_long(LONG)
    assert is_long([b"x"])
