"""What loads have taught, kept over restarts. Without a file, or with one that cannot be used, it lives in memory."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from router.core.learning.observation import Observation

_MOST_ROWS = 5000
_FORM = 1  # of the table; a file of another form is moved aside like a broken one
_BUSY_S = 2.0
_T = TypeVar("_T")


class LearnedStore(Protocol):
    """Observations, oldest first, at most a stated number of them. Never raises for what is wrong with a disk."""

    async def put(self, observation: Observation) -> None:
        """Keep it; the oldest goes when there are too many."""

    async def all(self) -> list[Observation]:
        """Everything kept, in the order it was put."""

    async def aclose(self) -> None:
        """Finish what is being written."""


class MemoryStore:
    """Keeps observations as long as the process lives."""

    def __init__(self, most_rows: int = _MOST_ROWS) -> None:
        self._rows: deque[Observation] = deque(maxlen=most_rows)

    async def put(self, observation: Observation) -> None:
        self._rows.append(observation)

    async def all(self) -> list[Observation]:
        return list(self._rows)

    async def aclose(self) -> None:
        """Nothing is being written."""


class SqliteStore:
    """Keeps observations in one SQLite file (WAL, so that two routers may share it).

    All work is done in a thread, one call after the other. A file that is broken or of another form is renamed to
    `….broken` (`moved_to` names it) and a new one begun. Where no file can be written (read-only, full, no directory),
    memory serves, and `error` is the reason. `report` is called on the loop, once per new trouble, with a sentence for
    the operator.
    """

    def __init__(
        self, path: str | Path, most_rows: int = _MOST_ROWS, *, report: Callable[[str], None] = lambda text: None
    ) -> None:
        self.path = Path(path)
        self.moved_to: Path | None = None
        self.error = ""
        self._report = report
        self._reported: tuple[Path | None, str] = (None, "")
        self._most_rows = most_rows
        self._memory = MemoryStore(most_rows)
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()

    async def put(self, observation: Observation) -> None:
        await self._memory.put(observation)
        await self._do(lambda connection: self._insert(connection, observation), None)

    async def all(self) -> list[Observation]:
        found = await self._do(_select, None)
        return await self._memory.all() if found is None else found

    async def aclose(self) -> None:
        async with self._turn:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                await asyncio.to_thread(connection.close)

    async def _do(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """`work` in a thread. A broken file is moved aside and the work done again; what still fails is noted."""
        task = asyncio.create_task(self._locked(work, otherwise))
        return await asyncio.shield(task)

    async def _locked(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._in_thread, work, otherwise)
            finally:
                self._report_news()

    def _report_news(self) -> None:
        """Report what has gone wrong since the last report; an error that lasts is reported once."""
        moved_to, error = self._reported
        self._reported = self.moved_to, self.error
        if self.moved_to is not None and self.moved_to != moved_to:
            self._report(f"the learned store {self.path} cannot be read: moved to {self.moved_to}, a new one is begun")
        if self.error and self.error != error:
            self._report(f"the learned store {self.path} cannot be used, memory serves until it can: {self.error}")

    def _in_thread(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        for _ in range(2):
            try:
                if self._connection is None:
                    self._connection = self._open()
                with self._connection:
                    found = work(self._connection)
            except sqlite3.OperationalError as exc:  # locked, full, read-only: not the file's fault
                self._drop(str(exc))
                return otherwise
            except (sqlite3.DatabaseError, msgspec.DecodeError) as exc:
                self._drop(str(exc))
                if not self._move_aside():
                    return otherwise
            except OSError as exc:
                self._drop(str(exc))
                return otherwise
            else:
                self.error = ""
                return found
        return otherwise

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            (form,) = connection.execute("PRAGMA user_version").fetchone()
            if form not in (0, _FORM):
                raise sqlite3.DatabaseError(f"the file has form {form}, this version knows {_FORM}")
            connection.execute("CREATE TABLE IF NOT EXISTS observations (id INTEGER PRIMARY KEY, seen BLOB NOT NULL)")
            connection.execute(f"PRAGMA user_version={_FORM}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _insert(self, connection: sqlite3.Connection, observation: Observation) -> None:
        row = connection.execute("INSERT INTO observations (seen) VALUES (?)", (msgspec.json.encode(observation),))
        oldest = (row.lastrowid or 0) - self._most_rows
        connection.execute("DELETE FROM observations WHERE id <= ?", (oldest,))

    def _drop(self, error: str) -> None:
        self.error = error
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _move_aside(self) -> bool:
        """True when the file is out of the way, with what SQLite keeps beside it."""
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


def _select(connection: sqlite3.Connection) -> list[Observation] | None:
    rows: list[Any] = connection.execute("SELECT seen FROM observations ORDER BY id").fetchall()
    return [msgspec.json.decode(seen, type=Observation) for (seen,) in rows]
