"""Bytes reach a socket at once and in their order, whatever it takes at a time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import pytest
import uvloop

from router.adapters.relay_socket import NOT_PLAIN, plain_fd, write_now

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_everything_arrives_in_order_through_a_socket_that_is_full(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Small and large writes in turn to a reader that is slow: the same bytes in the same order."""

    async def story() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
        far, _ = await loop.sock_accept(listener)
        fd = plain_fd(cast("asyncio.Transport", transport))
        assert fd != NOT_PLAIN
        parts = [bytes([65 + number % 26]) * (200_000 if number % 3 else 10) for number in range(60)]
        for part in parts:
            write_now(cast("asyncio.Transport", transport), fd, part)
        found = bytearray()
        while len(found) < sum(map(len, parts)):
            found += await loop.sock_recv(far, 1 << 16)
        assert bytes(found) == b"".join(parts)
        far.close()
        await asyncio.sleep(0.01)
        while not transport.is_closing():  # to nobody: the transport finds out
            write_now(cast("asyncio.Transport", transport), fd, b"x")
            await asyncio.sleep(0.01)
        transport.close()
        listener.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


def test_what_is_no_plain_socket_is_left_to_its_transport() -> None:
    """A transport without a socket has no descriptor to write to."""
    assert plain_fd(asyncio.Transport()) == NOT_PLAIN
