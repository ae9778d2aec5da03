"""Who has used what: the usage and the audit of one router, from the events of requests to their files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from router.adapters.usage_store import Row, UsageStore
from router.admin.focus import FREE, Price
from router.config import Audit
from router.core.teams.usage import HOUR_S, Ledger
from router.core.units import MIB
from router.errors import RouterError
from router.telemetry import AuditHook, Hook, LineWriter, RotatedFile, UsageHook, UsageWriter

MOST_ROWS = 100_000
"""Most rows of one answer."""

MOST_WAITING = 20_000
"""Most rows that wait for a file that cannot be written."""

RESTORE_S = 2.0
"""How long a start waits for what was used today."""

LAST_ROWS_S = 2.0
"""How long the end tries to bring the last usage to a database; what it lacks then waits in the outbox."""

LAST_LINES_S = 2.0
"""How long the end waits for the last lines of the audit."""


class Accounts:
    """`hooks` receive the events; usage is written to `store` every `every_s` seconds. `is_known_model` tells which
    models have rows of their own, `warn` takes sentences for the operator, `flush` has the hooks called with the events
    that wait, `unix_now` is the wall clock. Without
    `counts_usage` the usage is only shown, because others write it to the same database."""

    def __init__(
        self,
        store: UsageStore,
        every_s: float,
        audit: Audit,
        is_known_model: Callable[[str], bool],
        warn: Callable[[str], None],
        *,
        flush: Callable[[], None],
        unix_now: Callable[[], float],
        price: Price = FREE,
        counts_usage: bool = True,
    ) -> None:
        self._flush, self._unix_now = flush, unix_now
        self._store, self.price = store, price
        self._ledger = Ledger(MOST_WAITING)
        self._writer = UsageWriter(self._ledger, store, every_s)
        self._lines: LineWriter | None = None
        self.hooks: list[Hook] = []
        if counts_usage:
            self.hooks.append(UsageHook(self._ledger, is_known_model=is_known_model, unix_now=unix_now))
        if audit.path is not None:
            later = asyncio.get_running_loop().call_soon_threadsafe
            file = RotatedFile(
                audit.path, audit.max_mib * MIB, audit.keep, report=lambda text: (later(warn, text), None)[1]
            )
            self._lines = LineWriter(write=file.write)
            self._audit = AuditHook(self._lines, unix_now=unix_now)
            self.hooks.append(self._audit)

    async def watch(self) -> None:
        """Write the usage again and again until cancelled."""
        await self._writer.watch()

    async def stop(self) -> None:
        """Write what is left, and close the files; `watch` has ended. Idempotent."""
        await self._writer.keep()  # first, so that it is safe if the database does not answer
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_ROWS_S):
                await self._writer.write()
        await self._store.aclose()
        if self._lines is not None:
            await asyncio.to_thread(self._lines.close, LAST_LINES_S)

    async def rows(self, since: int, until: int, by: Sequence[str]) -> list[Row]:
        """Return the usage from the hour `since` up to but without `until`, summed by the names `by`, until now.

        Raises RouterError if it cannot be read, or would be too long.
        """
        self._flush()
        await self._writer.write()
        found = await self._store.rows(since, until, by, MOST_ROWS + 1)
        if found is None:
            raise RouterError(f"the usage cannot be read: {self._store.error}")
        if len(found) > MOST_ROWS:
            raise RouterError(f"more than {MOST_ROWS} rows: ask for fewer hours, or sum by fewer names")
        return found

    @property
    def problem(self) -> str:
        """Why the newest usage is not in the store yet, "" if nothing is wrong."""
        return f"the newest usage is not in it: {self._store.error}" if self._store.error else ""

    async def restore(self, restore: Callable[[str, int], None]) -> None:
        """Call `restore` with each team and the tokens that it has used today, by a router before this one.

        If the store does not answer soon, the teams begin with nothing: a start must not wait for a database.
        """
        midnight, rows = int(self._unix_now()) // (24 * HOUR_S) * 24 * HOUR_S, None
        with suppress(TimeoutError):
            async with asyncio.timeout(RESTORE_S):
                rows = await self._store.rows(midnight, midnight + 24 * HOUR_S, ("team",), MOST_ROWS)
        for row in rows or ():
            restore(str(row["team"]), int(row["tokens_in"]) + int(row["tokens_out"]))

    def stores_up(self) -> dict[str, bool]:
        """Return which of the stores can be used."""
        return {"usage": not self._store.error}

    def lost(self) -> tuple[int, int]:
        """Return how many requests the usage lacks, and how many lines the audit."""
        if self._lines is None:
            return self._ledger.lost + self._store.lost, 0
        return self._ledger.lost + self._store.lost, self._lines.dropped + self._audit.left_out
