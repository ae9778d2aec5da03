"""Routers that share limits in a real server, as far as limits go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from router.adapters.lender import Times
from router.adapters.shared_quotas import SharedQuotas
from router.adapters.valkey import ValkeyStore
from router.core.teams.memory_quotas import MemoryQuotas
from router.core.teams.quotas import Asking, Granted, Refused
from router.core.teams.team import Team, TeamLimits

PATIENT = Times(connect_s=2.0, call_s=2.0, hold_s=5.0, pause_s=0.1)
"""For tests of what is counted: a busy machine must not look like a lost server."""

LONGEST_S = 30.0


def team_of(name: str = "coding", **limits: int | str) -> Team:
    return Team(name, limits=TeamLimits(**limits))  # type: ignore[arg-type]


class Member:
    """One router. `asked` counts the requests that had to wait for the store, `said` is what the operator was told."""

    def __init__(self, quotas: SharedQuotas, local: MemoryQuotas, said: list[str] | None = None) -> None:
        self.quotas, self.local, self.said = quotas, local, said if said is not None else []
        self.asked = self._number = 0

    async def begin(self, team: Team, tokens: int = 0) -> str | Refused:
        """Return the id of a request that is admitted, or why it is not."""
        self._number += 1
        request = f"{id(self):x}-{self._number}"
        found = self.quotas.admit(team, request, tokens)
        if isinstance(found, Asking):
            self.asked += 1
            found = await found.answer()
        return request if isinstance(found, Granted) else found

    async def count(self, team: Team, attempts: int, tokens: int = 0) -> int:
        """Return how many of so many requests, one after the other, are admitted."""
        found = [await self.begin(team, tokens) for _ in range(attempts)]
        return sum(isinstance(one, str) for one in found)

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(LONGEST_S):
            while not is_true():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def up(self) -> None:
        await self.until(lambda: not self.quotas.error)

    async def down(self) -> None:
        await self.until(lambda: bool(self.quotas.error))

    async def knows(self, routers: int) -> None:
        await self.until(lambda: self.quotas.place.routers == routers)


def new_member(
    url: str,
    times: Times = PATIENT,
    *,
    routers: int = 2,
    skew_s: float = 0.0,
    after: Member | None = None,
) -> Member:
    """Return a router; `after` is the one before it in the same process."""

    def unix_now() -> float:
        return time.time() + skew_s

    said: list[str] = []
    local = after.local if after is not None else MemoryQuotas(asyncio.get_running_loop().time, unix_now)
    store, is_first = ValkeyStore(url), after is None
    quotas = SharedQuotas(local, store, times, routers, unix_now=unix_now, report=said.append, is_first=is_first)
    return Member(quotas, local, said)


@asynccontextmanager
async def member(url: str, times: Times = PATIENT, **more: Any) -> AsyncIterator[Member]:
    """Provide a router that has tried its store."""
    async with using((one := new_member(url, times, **more)).quotas, one.local, one.said) as found:
        yield found


async def settled(one: Member) -> None:
    """Wait until the store knows everything."""
    await one.until(lambda: all(loan.is_idle for loan in one.quotas._loans.values()))


@asynccontextmanager
async def using(quotas: SharedQuotas, local: MemoryQuotas, said: list[str] | None = None) -> AsyncIterator[Member]:
    """Provide a router that has tried its store, and runs until the context ends."""
    one = Member(quotas, local, said)
    watching = asyncio.create_task(one.quotas.watch())
    await one.quotas.tried()
    try:
        yield one
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await one.quotas.aclose()


@asynccontextmanager
async def members(url: str, count: int, times: Times = PATIENT) -> AsyncIterator[list[Member]]:
    """Provide routers that know of each other."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(member(url, times)) for _ in range(count)]
        for one in found:
            await one.up()
            await one.knows(count)
        yield found


class Proxy:
    """Stands between routers and their store. It can hold answers back, or be cut."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self._upstream = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def slow_down(self, delay_s: float) -> None:
        """Hold each answer back for so long."""
        self.delay_s = delay_s

    async def cut(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)  # for the ends of the connections

    def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._carried(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also if it was cancelled before it began

    async def _carried(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            return
        try:
            await asyncio.gather(self._pass(reader, requests), self._pass(answers, writer, is_answer=True))
        except OSError:
            pass
        finally:
            requests.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        while data := await reader.read(1 << 16):
            if is_answer:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()
