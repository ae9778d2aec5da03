"""The usage of teams in a PostgreSQL database that several routers share.

Rows are kept by month (partitions), so that old ones go as a whole. A batch and the number that marks it as written are
one transaction, as in the SQLite file. The driver is optional: `pip install 'ollama-router[postgres]'`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from router.adapters.outbox import Outbox
from router.adapters.sqlite_file import NewerForm
from router.adapters.usage_sql import adding, summing
from router.core.masking import masked
from router.core.teams.usage import FIGURES, HOUR_S, NAMES, UsageBatch
from router.errors import ConfigError

if TYPE_CHECKING:
    import psycopg

    from router.adapters.usage_store import Row

T = TypeVar("T")
CONNECT_S, STATEMENT_S = 5, 10
"""Longest time to reach the database (whole seconds: the driver knows no others), and for one statement."""

VERSION = 1
_LOCK = 0x6F6C6C61  # any number, the same in all routers: who makes tables or partitions holds it

_ADD = adding("router_usage", "%s")
_MARK = (
    "INSERT INTO router_usage_batch (writer, seq, hour) VALUES (%s, %s, %s) "
    "ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq, hour = excluded.hour "
    "WHERE router_usage_batch.seq < excluded.seq RETURNING seq"
)
"""Returns a row unless the batch was written before. Whoever writes the same one meanwhile waits here for the other."""

_MAKE = (
    "CREATE TABLE IF NOT EXISTS router_usage_version (version integer NOT NULL)",
    f"""CREATE TABLE IF NOT EXISTS router_usage (
        hour bigint NOT NULL, team text NOT NULL, key_id text NOT NULL, model text NOT NULL, backend text NOT NULL,
        kind text NOT NULL, {", ".join(f"{name} bigint NOT NULL" for name in FIGURES)},
        PRIMARY KEY ({", ".join(NAMES)})
    ) PARTITION BY RANGE (hour)""",
    """CREATE TABLE IF NOT EXISTS router_usage_batch (
        writer text NOT NULL PRIMARY KEY, seq bigint NOT NULL, hour bigint NOT NULL)""",
    f"""INSERT INTO router_usage_version SELECT {VERSION}
        WHERE NOT EXISTS (SELECT FROM router_usage_version)""",
)
_PARTITIONS = """SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
    WHERE inhparent = 'router_usage'::regclass ORDER BY 1"""


class PostgresUsage:
    """Keeps usage in the database at `url`; what it cannot take now waits in `outbox`, in order, and follows later.

    All work is done in a thread, one call at a time. While the database cannot be used `error` is why, without its
    password. Months that ended more than `keep_days` ago are dropped. `report` is called on the loop, once until the
    database can be used again, with a sentence for the operator. Raises ConfigError if the driver is missing.
    """

    def __init__(
        self, url: str, outbox: Outbox, keep_days: int = 400, *, report: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._driver = _driver()
        self._url = url
        self._outbox = outbox
        self._keep_s = keep_days * 24 * HOUR_S
        self._report = report
        self._connection: psycopg.Connection[Any] | None = None
        self._months: set[str] = set()  # those whose partition is there
        self._turn = asyncio.Lock()
        self._is_closed = False
        self._too_old = 0
        self.error = ""

    @property
    def lost(self) -> int:
        """How many requests found no room while the database was away, or were of a time that it does not keep."""
        return self._outbox.lost + self._too_old

    async def add(self, batch: UsageBatch) -> bool:
        """Add a batch after those that wait, unless it was added before; return whether it is there or waits."""
        if await self.catch_up() and await self._is_added(batch):
            return True
        return await self._outbox.put(batch)

    async def keep(self, batch: UsageBatch) -> bool:
        """Have a batch wait after those that wait; return whether it does."""
        return await self._outbox.put(batch)

    async def catch_up(self) -> bool:
        """Add the batches that wait, in their order; return whether none waits any more."""
        try:
            while (batch := await self._outbox.first()) is not None:
                if not await self._is_added(batch):
                    return False
                await self._outbox.drop(batch)
        # Nothing may pass what waits: its numbers would count as written.
        except (sqlite3.Error, OSError, NewerForm, msgspec.MsgspecError) as exc:
            self._fail(str(exc))
            return False
        return True

    async def _is_added(self, batch: UsageBatch) -> bool:
        """Add a batch; return whether it is in the database."""
        too_old = await self._do(partial(self._insert, batch=batch))
        self._too_old += too_old or 0
        return too_old is not None

    async def rows(self, since: int, until: int, by: Sequence[str], most: int) -> list[Row] | None:
        """Return the figures of all routers, as UsageStore.rows; None if the database cannot be read."""
        return await self._do(lambda connection: _select(connection, since, until, by, most))

    async def aclose(self) -> None:
        """Close the outbox and the connection; one that is in use closes when that ends, which is not waited for."""
        self._is_closed = True
        await self._outbox.aclose()
        if not self._turn.locked():
            async with self._turn:
                await asyncio.to_thread(self._drop)

    # --- in the thread -----------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[psycopg.Connection[Any]], T]) -> T | None:
        """Return the result of `work`, None if it fails; a failure is reported, not raised."""
        # In a task of its own: a caller that is cancelled must not interrupt a write halfway.
        return await asyncio.shield(asyncio.create_task(self._locked(work)))

    async def _locked(self, work: Callable[[psycopg.Connection[Any]], T]) -> T | None:
        async with self._turn:
            found, fault = await asyncio.to_thread(self._in_thread, work)
            if self._is_closed:
                await asyncio.to_thread(self._drop)
        self._fail(fault)
        return found

    def _fail(self, fault: str) -> None:
        """Report a fault unless there was one before; "" is the end of it."""
        if fault and not self.error:
            self._report(f"the usage database cannot be used, keeping what it lacks: {fault}")
        self.error = fault

    def _in_thread(self, work: Callable[[psycopg.Connection[Any]], T]) -> tuple[T | None, str]:
        """Return the result of `work`, or None and the fault."""
        try:
            if self._connection is None:
                self._connection = self._open()
            with self._connection.transaction():
                return work(self._connection), ""
        except self._driver.Error as exc:
            self._drop()
            return None, masked(" ".join(str(exc).split())) or type(exc).__name__
        except _NewerTables as exc:
            self._drop()
            return None, str(exc)

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(self._driver.Error):
                self._connection.close()
        self._connection = None
        self._months.clear()

    def _open(self) -> psycopg.Connection[Any]:
        options = f"-c statement_timeout={STATEMENT_S}s -c lock_timeout={STATEMENT_S}s"
        connection: psycopg.Connection[Any] = self._driver.connect(
            self._url, connect_timeout=CONNECT_S, options=options, autocommit=True, application_name="ollama-router"
        )
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                for statement in _MAKE:
                    connection.execute(statement)
                found = connection.execute("SELECT max(version) FROM router_usage_version").fetchone()
                version = found[0] if found is not None else VERSION
                if version > VERSION:
                    raise _NewerTables(f"its tables are of version {version}, this router knows up to {VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _insert(self, connection: psycopg.Connection[Any], batch: UsageBatch) -> int:
        """Mark the batch and add its rows, in the transaction of the caller.

        Return how many requests are of months that are not kept: the router's clock may be years behind.
        """
        for hour in {key.hour for key, _ in batch.rows}:
            self._make_room(connection, hour)
        latest = max((key.hour for key, _ in batch.rows), default=0)
        if connection.execute(_MARK, (batch.writer, batch.seq, latest)).fetchone() is None:
            return 0
        # In the order of their keys, in which all routers add: so none waits for one that waits for it.
        rows = [(*key, *figures) for key, figures in batch.rows if _month_of(key.hour)[0] in self._months]
        with connection.cursor() as cursor:
            cursor.executemany(_ADD, rows)
        return sum(figures.requests for key, figures in batch.rows if _month_of(key.hour)[0] not in self._months)

    def _make_room(self, connection: psycopg.Connection[Any], hour: int) -> None:
        """Make the partition of the month of `hour` if it is missing and not too old; drop those that are."""
        name, first, after = _month_of(hour)
        if name in self._months:
            return
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # By the clock of the database: a router's may be years ahead.
        (now,) = connection.execute("SELECT extract(epoch FROM now())::bigint").fetchone() or (0,)
        oldest, _, _ = _month_of(max(0, now - self._keep_s))
        for (other,) in connection.execute(_PARTITIONS).fetchall():
            if other < oldest:
                connection.execute(f"DROP TABLE {other}")
        connection.execute("DELETE FROM router_usage_batch WHERE hour < %s", (now - self._keep_s,))
        if name >= oldest:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF router_usage FOR VALUES FROM ({first}) TO ({after})"
            )
            self._months.add(name)


class _NewerTables(Exception):
    """The tables were made by a newer version of the router."""


def _driver() -> ModuleType:
    try:
        return importlib.import_module("psycopg")
    except ImportError:
        raise ConfigError(
            "usage.postgres_file needs the driver of PostgreSQL: pip install 'ollama-router[postgres]'"
        ) from None


def _month_of(hour: int) -> tuple[str, int, int]:
    """Return the name of the partition that `hour` is in, its first hour, and that of the next one."""
    at = datetime.fromtimestamp(hour, UTC)
    first = datetime(at.year, at.month, 1, tzinfo=UTC)
    after = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return f"router_usage_{at.year:04}_{at.month:02}", int(first.timestamp()), int(after.timestamp())


def _select(connection: psycopg.Connection[Any], since: int, until: int, by: Sequence[str], most: int) -> list[Row]:
    found = connection.execute(summing("router_usage", by, "%s", "::bigint"), (since, until, most))
    titles = [column.name for column in found.description or ()]
    return [dict(zip(titles, row, strict=True)) for row in found.fetchall()]
