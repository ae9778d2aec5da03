"""The usage of teams by hour, in a SQLite file; in memory if there is none.

A file of an older version is brought forward step by step (`_STEPS`); one of a newer version is left alone. A batch and
the number that marks it as written are one transaction, so that a batch that is repeated is added once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from router.adapters.sqlite_file import NewerForm, open_shared
from router.adapters.usage_sql import adding, summing
from router.core.teams.usage import FIGURES, HOUR_S, UsageBatch, kept_from

T = TypeVar("T")
MEMORY_DAYS = 7
_ZEROS = ", ".join(f"{name} INTEGER NOT NULL" for name in FIGURES)
_STEPS = (
    f"""
    CREATE TABLE usage (
        hour INTEGER NOT NULL, team TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL, backend TEXT NOT NULL,
        kind TEXT NOT NULL, {_ZEROS},
        PRIMARY KEY (hour, team, key_id, model, backend, kind)
    ) WITHOUT ROWID;
    CREATE TABLE usage_batch (writer TEXT NOT NULL PRIMARY KEY, seq INTEGER NOT NULL, hour INTEGER NOT NULL)
        WITHOUT ROWID;
    """,
)
"""The steps from each version of the file to the next one. Published steps are never changed."""

_ADD = adding("usage", "?")
_MARK = (
    "INSERT INTO usage_batch (writer, seq, hour) VALUES (?, ?, ?) "
    "ON CONFLICT DO UPDATE SET seq = excluded.seq, hour = excluded.hour"
)

Row = dict[str, int | str]


class UsageStore(Protocol):
    """Usage by hour. Its methods never raise because of a disk or file; `error` is why it cannot be used, "" if it
    can."""

    error: str

    @property
    def lost(self) -> int:
        """How many requests it had no room for."""

    async def add(self, batch: UsageBatch) -> bool:
        """Add a batch, unless it was added before; return whether it is in the store."""

    async def keep(self, batch: UsageBatch) -> bool:
        """Add a batch, or keep it for `catch_up` where that may take long; return whether it is safe."""

    async def catch_up(self) -> bool:
        """Write what waits until the store can be reached; return whether nothing waits any more."""

    async def rows(self, since: int, until: int, by: Sequence[str], most: int) -> list[Row] | None:
        """Return the figures from the hour `since` up to but without `until`, summed by the names `by`, and in their
        order; at most `most` rows. None if the store cannot be read."""

    async def aclose(self) -> None:
        """Close the store."""


class SqliteUsage:
    """Keeps usage in a SQLite file (in WAL mode, so that two routers may share it), or in memory if `path` is None.

    All work is done in a thread, one call at a time. A corrupt file is renamed to `….broken` and a new one begun. While
    the file cannot be written `error` is why. Rows older than `keep_days` are deleted, in memory those older than a
    week; at most a day of them in an hour, because a clock may be wrong. `report` is called on the loop, once until the
    file can be written again, with a sentence for the operator.
    """

    def __init__(
        self, path: str | None, keep_days: int = 400, *, report: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._path = Path(path) if path is not None else None
        self._keep_s = (keep_days if path is not None else min(keep_days, MEMORY_DAYS)) * 24 * HOUR_S
        self._report = report
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()
        self._news: list[str] = []
        self.error, self.lost = "", 0

    async def add(self, batch: UsageBatch) -> bool:
        is_added = await self._do(lambda connection: self._insert(connection, batch)) is not None
        if is_added:
            self.error = ""
        return is_added

    async def keep(self, batch: UsageBatch) -> bool:
        return await self.add(batch)

    async def catch_up(self) -> bool:
        return not self.error

    async def rows(self, since: int, until: int, by: Sequence[str], most: int) -> list[Row] | None:
        return await self._do(lambda connection: _select(connection, since, until, by, most))

    async def aclose(self) -> None:
        async with self._turn:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                await asyncio.to_thread(connection.close)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return the result of `work`, None if it fails; a failure is reported, not raised."""
        # In a task of its own: a caller that is cancelled must not interrupt a write halfway.
        return await asyncio.shield(asyncio.create_task(self._locked(work)))

    async def _locked(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._in_thread, work)
            finally:
                news, self._news = self._news, []
                for text in news:
                    self._report(text)

    def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        for _ in range(2):  # once more after a corrupt file was moved aside
            try:
                if self._connection is None:
                    self._connection = open_shared(self._path, len(_STEPS), _bring_forward)
                with self._connection:
                    return work(self._connection)
            except sqlite3.OperationalError as exc:  # locked, full, read-only: the file's content is good
                self._fail(str(exc))
                break
            except sqlite3.DatabaseError as exc:
                if not self._move_aside(str(exc)):
                    break
            except (OSError, NewerForm) as exc:
                self._fail(str(exc))
                break
        return None

    def _insert(self, connection: sqlite3.Connection, batch: UsageBatch) -> bool:
        """Add the rows and mark the batch, in one transaction that the caller ends."""
        newest = max((key.hour for key, _ in batch.rows), default=0)
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("SELECT seq FROM usage_batch WHERE writer = ?", (batch.writer,)).fetchone()
        if found is not None and found[0] >= batch.seq:
            return True
        self._prune(connection, newest)
        connection.executemany(_ADD, [(*key, *figures) for key, figures in batch.rows])
        connection.execute(_MARK, (batch.writer, batch.seq, newest))
        return True

    def _prune(self, connection: sqlite3.Connection, newest: int) -> None:
        """Delete old rows in front of the first one of the hour `newest`, as `kept_from` says."""
        hours = "SELECT MIN(hour), (SELECT MAX(hour) FROM usage WHERE hour <= ?) FROM usage"
        oldest, before = connection.execute(hours, (newest,)).fetchone()
        if before is None or before == newest:
            return
        kept = kept_from(oldest, before, newest, self._keep_s)
        for table in ("usage", "usage_batch"):
            connection.execute(f"DELETE FROM {table} WHERE hour < ?", (kept,))

    def _fail(self, error: str) -> None:
        if not self.error:
            self._news.append(f"the usage {self._path} cannot be used, keeping what it lacks in memory: {error}")
        self.error = error
        if self._path is not None:
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _move_aside(self, error: str) -> bool:
        """Rename a corrupt file and delete SQLite's files beside it; return whether that succeeded."""
        self._drop()
        if self._path is None:
            return False
        target = self._path.with_name(self._path.name + ".broken")
        try:
            self._path.replace(target)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as exc:
            self._fail(str(exc))
            return False
        self._news.append(f"the usage {self._path} cannot be read ({error}): moved to {target}, starting a new one")
        return True


def _bring_forward(connection: sqlite3.Connection, version: int) -> None:
    """Bring the file from `version` to the current one, each step in one transaction."""
    for number in range(version, len(_STEPS)):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            # Another router may have done it meanwhile.
            if connection.execute("PRAGMA user_version").fetchone()[0] > number:
                continue
            for statement in _statements(_STEPS[number]):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number + 1}")


def _statements(step: str) -> Iterator[str]:
    """Yield the statements of a step: `executescript` would end the transaction that they are in."""
    yield from (statement for statement in step.split(";") if statement.strip())


def _select(connection: sqlite3.Connection, since: int, until: int, by: Sequence[str], most: int) -> list[Row]:
    found = connection.execute(summing("usage", by, "?"), (since, until, most))
    titles = [column[0] for column in found.description]
    return [dict(zip(titles, row, strict=True)) for row in found]
