"""A long answer of a list is sent in pieces, each when the client has read what came before."""

from __future__ import annotations

import asyncio
from typing import Any

from router.api.budget import BodyBudget
from router.api.exchange import AT_ONCE_BYTES, Exchange
from router.api.settings import EdgeSettings
from router.http.client.outgoing import STEP_BYTES
from router.http.server.cycle import Cycle
from router.http.server.heads import Head


class Client:
    """A connection that keeps the sizes of what is written; `reads` is set while the client reads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = self
        self.client = ("127.0.0.1", 1)
        self.written: list[int] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.is_done = False

    @property
    def is_write_paused(self) -> bool:
        return not self.reads.is_set()

    def write(self, data: bytes) -> None:
        self.written.append(len(data))

    async def drain(self) -> None:
        await self.reads.wait()

    def cycle_done(self, _cycle: Cycle) -> None:
        self.is_done = True


def exchange_with(client: Any) -> Exchange:
    cycle = Cycle(client, Head("GET", b"/api/tags", b"/api/tags", [], {}), request_complete=True)
    return Exchange(cycle, EdgeSettings(), BodyBudget(1 << 30))


async def test_no_write_takes_all_of_a_long_answer() -> None:
    """The transport would copy it, and others get their turn in between."""
    client, turns = Client(), 0

    async def others() -> None:
        nonlocal turns
        while not client.is_done:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    size = 20 * STEP_BYTES + 1
    await exchange_with(client).answer(200, [], b"x" * size)
    await beside
    assert max(client.written) <= STEP_BYTES
    assert size < sum(client.written) < size + 1000
    assert turns >= 20


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    """No more than the next piece is written meanwhile."""
    client = Client()
    client.reads.clear()
    sending = asyncio.create_task(exchange_with(client).answer(200, [], b"x" * (8 * STEP_BYTES)))
    for _ in range(100):
        await asyncio.sleep(0)
    assert sum(client.written) < 2 * STEP_BYTES
    client.reads.set()
    await sending
    assert client.is_done


async def test_a_short_answer_is_one_write() -> None:
    """However little time others get: it takes none."""
    client = Client()
    await exchange_with(client).answer(200, [], b"x" * AT_ONCE_BYTES)
    assert len(client.written) <= 2
