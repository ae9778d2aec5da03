"""Batches of usage that wait for a database, in the order in which they came: in a file, or in memory without one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from router.adapters.sqlite_file import NewerForm, open_shared
from router.core.teams.usage import UsageBatch

T = TypeVar("T")
_VERSION = 1
_TABLE = "CREATE TABLE IF NOT EXISTS waiting (id INTEGER PRIMARY KEY, requests INTEGER NOT NULL, batch BLOB NOT NULL)"


class Outbox:
    """At most `max_bytes` of batches; beyond them the oldest are dropped, and their requests counted in `lost`.

    What was in the file before a crash or restart is there again. All work is done in a thread, one call at a time.
    """

    def __init__(self, path: str | None, max_bytes: int) -> None:
        self._path = Path(path) if path is not None else None
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()
        self.lost = 0

    async def put(self, batch: UsageBatch) -> bool:
        """Append a batch; return False if the file cannot be written."""
        try:
            await self._do(lambda connection: self._append(connection, batch))
        except (sqlite3.Error, OSError, NewerForm):
            return False
        return True

    async def first(self) -> UsageBatch | None:
        """Return the oldest batch, None if none waits.

        Raises sqlite3.Error, OSError, NewerForm and MsgspecError if the file or the batch cannot be read.
        """
        return await self._do(_oldest)

    async def drop(self, batch: UsageBatch) -> None:
        """Remove the oldest batch, which is `batch`. If that fails it is sent again, and counted once by its number."""

        def work(connection: sqlite3.Connection) -> None:
            if _oldest(connection) == batch:
                connection.execute("DELETE FROM waiting WHERE id = (SELECT min(id) FROM waiting)")

        await self._do(work)

    async def aclose(self) -> None:
        """Close the file."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await asyncio.to_thread(connection.close)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        # In a task of its own: a caller that is cancelled must not interrupt a write, nor let another one in beside it.
        return await asyncio.shield(asyncio.create_task(self._locked(work)))

    async def _locked(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(self._in_thread, work)

    def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = open_shared(self._path, _VERSION, _make)
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return work(self._connection)
        except (sqlite3.Error, OSError):
            if self._connection is not None and self._path is not None:  # in memory, closing it would lose all
                self._connection.close()
                self._connection = None
            raise

    def _append(self, connection: sqlite3.Connection, batch: UsageBatch) -> None:
        requests = sum(figures.requests for _, figures in batch.rows)
        connection.execute(
            "INSERT INTO waiting (requests, batch) VALUES (?, ?)", (requests, msgspec.msgpack.encode(batch))
        )
        (held,) = connection.execute("SELECT sum(length(batch)) FROM waiting").fetchone()
        oldest = connection.execute("SELECT id, requests, length(batch) FROM waiting ORDER BY id").fetchall()
        for number, lost, size_bytes in oldest[:-1]:
            if held <= self._max_bytes:
                break
            connection.execute("DELETE FROM waiting WHERE id = ?", (number,))
            held -= size_bytes
            self.lost += lost


def _make(connection: sqlite3.Connection, _version: int) -> None:
    connection.execute(_TABLE)
    connection.execute(f"PRAGMA user_version={_VERSION}")


def _oldest(connection: sqlite3.Connection) -> UsageBatch | None:
    found = connection.execute("SELECT batch FROM waiting ORDER BY id LIMIT 1").fetchone()
    return msgspec.msgpack.decode(found[0], type=UsageBatch) if found is not None else None
