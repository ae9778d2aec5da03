"""The observations of loads, kept across restarts; in memory if there is no file or it cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from router.adapters.sqlite_file import NewerForm, open_shared
from router.core.learning.observation import Observation

_MAX_ROWS = 5000
_SCHEMA_VERSION = 1
_T = TypeVar("_T")


class LearnedStore(Protocol):
    """A bounded list of observations, oldest first. Its methods never raise because of a disk or file; `error` is why
    it cannot be used, "" if it can."""

    error: str

    async def put(self, observation: Observation) -> None:
        """Append an observation; the oldest is deleted when there are too many."""

    async def all(self) -> list[Observation]:
        """Return all observations, oldest first."""

    async def forget(self, weights: str | None) -> None:
        """Delete the observations of these weights, or all of them (None)."""

    async def aclose(self) -> None:
        """Finish the writes under way and close the store."""


class MemoryStore:
    """Keeps observations until the process ends."""

    error = ""

    def __init__(self, max_rows: int = _MAX_ROWS) -> None:
        self._rows: deque[Observation] = deque(maxlen=max_rows)

    async def put(self, observation: Observation) -> None:
        self._rows.append(observation)

    async def all(self) -> list[Observation]:
        return list(self._rows)

    async def forget(self, weights: str | None) -> None:
        kept = [seen for seen in self._rows if weights is not None and seen.weights != weights]
        self._rows.clear()
        self._rows.extend(kept)

    async def aclose(self) -> None:
        """Do nothing: there is no file to close."""


class SqliteStore:
    """Keeps observations in one SQLite file (in WAL mode, so that two routers may share it).

    All work is done in a thread, one call at a time. A file that is corrupt is renamed to `….broken` (`moved_to` is its
    new path) and a new one created. If no file can be written (read-only or full disk, no directory), or if it is of a
    newer version of the router, which is left alone, observations are kept in memory and `error` is why. `report`
    is called on the loop, once per new problem, with a sentence for the operator.
    """

    def __init__(
        self, path: str | Path, max_rows: int = _MAX_ROWS, *, report: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.path = Path(path)
        self.moved_to: Path | None = None
        self.error = ""
        self._report = report
        self._reported: tuple[Path | None, str] = (None, "")
        self._max_rows = max_rows
        self._memory = MemoryStore(max_rows)
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()

    async def put(self, observation: Observation) -> None:
        await self._memory.put(observation)
        await self._do(lambda connection: self._insert(connection, observation), None)

    async def all(self) -> list[Observation]:
        found = await self._do(_select, None)
        return await self._memory.all() if found is None else found

    async def forget(self, weights: str | None) -> None:
        await self._memory.forget(weights)
        await self._do(lambda connection: _delete(connection, weights), None)

    async def aclose(self) -> None:
        async with self._turn:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                await asyncio.to_thread(connection.close)

    async def _do(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Return the result of `work`, `otherwise` if it fails; a failure is reported, not raised."""
        # In a task of its own: a caller that is cancelled must not interrupt a write halfway.
        return await asyncio.shield(asyncio.create_task(self._locked(work, otherwise)))

    async def _locked(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._in_thread, work, otherwise)
            finally:
                self._report_news()

    def _report_news(self) -> None:
        """Report problems that are new since the last report; an error that persists is reported once."""
        moved_to, error = self._reported
        self._reported = self.moved_to, self.error
        if self.moved_to is not None and self.moved_to != moved_to:
            self._report(f"the learned store {self.path} cannot be read: moved to {self.moved_to}, starting a new one")
        if self.error and self.error != error:
            self._report(f"the learned store {self.path} cannot be used, keeping its data in memory: {self.error}")

    def _in_thread(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        for _ in range(2):  # once more after a corrupt file was moved aside
            try:
                if self._connection is None:
                    self._connection = open_shared(self.path, _SCHEMA_VERSION, _make_table)
                with self._connection:
                    found = work(self._connection)
            except sqlite3.OperationalError as exc:  # locked, full, read-only: the file's content is good
                self._drop(str(exc))
                return otherwise
            except (sqlite3.DatabaseError, msgspec.DecodeError) as exc:
                self._drop(str(exc))
                if not self._move_aside():
                    return otherwise
            except (OSError, NewerForm) as exc:
                self._drop(str(exc))
                return otherwise
            else:
                self.error = ""
                return found
        return otherwise

    def _insert(self, connection: sqlite3.Connection, observation: Observation) -> None:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute("INSERT INTO observations (seen) VALUES (?)", (msgspec.json.encode(observation),))
        oldest = (row.lastrowid or 0) - self._max_rows
        connection.execute("DELETE FROM observations WHERE id <= ?", (oldest,))

    def _drop(self, error: str) -> None:
        self.error = error
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _move_aside(self) -> bool:
        """Rename the file and delete SQLite's files beside it; return whether that succeeded."""
        target = self.path.with_name(self.path.name + ".broken")
        try:
            self.path.replace(target)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as exc:
            self.error = str(exc)
            return False
        self.moved_to = target
        return True


def _make_table(connection: sqlite3.Connection, _version: int) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS observations (id INTEGER PRIMARY KEY, seen BLOB NOT NULL)")
    connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")


def _select(connection: sqlite3.Connection) -> list[Observation] | None:
    rows: list[Any] = connection.execute("SELECT seen FROM observations ORDER BY id").fetchall()
    return [msgspec.json.decode(seen, type=Observation) for (seen,) in rows]


def _delete(connection: sqlite3.Connection, weights: str | None) -> None:
    if weights is None:
        connection.execute("DELETE FROM observations")
    else:
        of_weights = "json_extract(CAST(seen AS TEXT), '$.weights') = ?"
        connection.execute(f"DELETE FROM observations WHERE {of_weights}", (weights,))
