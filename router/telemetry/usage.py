"""The usage of teams: collected from the events of requests, and written in batches beside the loop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Protocol

from router.core.teams.usage import Figures, Ledger, UsageBatch, UsageKey, hour_of
from router.core.units import MIB
from router.telemetry.events import Decided, Event, Finished, Switched

BATCH = 500
"""Most rows of a batch: a write transaction must not keep others from the file for long."""

DECLINED = "declined"
"""The outcome of a request that its front sends to another node: it counts where it is served."""

OTHER = "other"
"""The model of requests for names that are neither configured nor installed: clients invent them without bound."""


_OUTCOME = attrgetter("outcome")
_ABOUT = attrgetter("team", "key_id", "variant", "backend", "operation")


class UsageSink(Protocol):
    """Where batches go. `add` returns whether a batch is in the store; it never raises because of a disk or file."""

    def add(self, batch: UsageBatch) -> Awaitable[bool]: ...

    def keep(self, batch: UsageBatch) -> Awaitable[bool]:
        """Add a batch, or keep it for later where that may take long; return whether it is safe."""

    def catch_up(self) -> Awaitable[bool]:
        """Write what the store has kept back until now; return whether nothing waits any more."""


class UsageHook:
    """Collects the usage of requests and of the switches that they caused. `unix_now` is the wall clock."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        is_known_model: Callable[[str], bool] = lambda _name: True,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._is_known = is_known_model
        self._unix_now = unix_now

    def on_requests(self, _decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Add the requests that have ended: summed up first, because those of a batch are mostly of one kind."""
        if DECLINED in map(_OUTCOME, finished):
            finished = [event for event in finished if event.outcome != DECLINED]
        alike: dict[tuple[str, str, str, str, str], list[Finished]] = {}
        for about, event in zip(map(_ABOUT, finished), finished, strict=True):
            group = alike.get(about)
            if group is None:
                group = alike[about] = []
            group.append(event)
        hour = hour_of(self._unix_now()) if alike else 0
        for about, group in alike.items():
            self._ledger.add(self._key(hour, *about), _sum(group))

    def on(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.on_requests((), (event,))
        elif isinstance(event, Switched) and event.team and event.duration_s is not None:
            # By the switch and not by its request, whose client may have left before the end of the load.
            hour = hour_of(self._unix_now())
            key = self._key(hour, event.team, event.key_id, event.model, event.backend, event.operation)
            self._ledger.add(key, Figures(load_ms=in_ms(event.duration_s)))

    def _key(self, hour: int, team: str, key_id: str, model: str, backend: str, kind: str) -> UsageKey:
        return UsageKey(hour, team, key_id, model if self._is_known(model) else OTHER, backend, kind)


class UsageWriter:
    """Writes a ledger to a store: every `every_s` seconds, before the usage is read, and at the end.

    A batch that could not be written is written again under its number, so that it counts once whether or not the first
    attempt reached the file.
    """

    def __init__(self, ledger: Ledger, sink: UsageSink, every_s: float) -> None:
        self._ledger = ledger
        self._every_s = every_s
        self._sink = sink
        self._writer = secrets.token_hex(8)
        self._batch: UsageBatch | None = None
        self._seq = 0
        self._turn = asyncio.Lock()

    async def watch(self) -> None:
        """Write again and again until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.write()

    async def write(self) -> bool:
        """Write what was collected; return False if the store cannot be written now, which keeps the rest."""
        async with self._turn:
            return await self._hand_to(self._sink.add) and await self._sink.catch_up()

    async def keep(self) -> bool:
        """Have the store keep what was collected, without waiting for a database; return False if it cannot."""
        async with self._turn:
            return await self._hand_to(self._sink.keep)

    async def _hand_to(self, take: Callable[[UsageBatch], Awaitable[bool]]) -> bool:
        while self._batch is not None or len(self._ledger):
            if self._batch is None:
                self._seq += 1
                self._batch = UsageBatch(self._writer, self._seq, self._ledger.take(BATCH))
            if not await take(self._batch):
                return False
            self._batch = None
        return True


def in_ms(seconds: float | None) -> int:
    """Return whole milliseconds, 0 for an unknown time; three times as fast as `round`."""
    return int(seconds * 1000 + 0.5) if seconds else 0


def _sum(events: Sequence[Finished]) -> Figures:
    """Return what these requests have used together. A pass for each figure is faster than all figures of each."""
    return Figures(
        requests=len(events),
        errors=sum([event.status >= 400 or event.outcome != "completed" for event in events]),
        tokens_in=sum([event.tokens_in or 0 for event in events]),
        tokens_out=sum([event.tokens_out or 0 for event in events]),
        card_ms=in_ms(sum([event.card_s or 0.0 for event in events])),
        queue_ms=in_ms(sum([event.queue_s for event in events])),
        vram_mib_s=int(sum([event.card_s * (event.vram_bytes or 0) for event in events if event.card_s]) / MIB + 0.5),
    )
