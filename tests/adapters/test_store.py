"""Observations are kept in order and bounded, whatever happens to the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from dataclasses import replace

import pytest

from router.adapters.store import MemoryStore, SqliteStore
from router.core.learning.observation import Observation

SEEN = Observation(
    weights="sha256-a",
    num_ctx=8192,
    num_batch=512,
    num_parallel=1,
    kv_type="f16",
    gpu_names=("RTX A5000",),
    ollama_version="0.33.0",
    measured_bytes=10,
    predicted_bytes=9,
    spilled=False,
    free_before_bytes=20,
    at_s=1.5,
    main_gpu=0,
)


def seen(number):
    return replace(SEEN, measured_bytes=number)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path):
    """Provide each kind of store, for three rows."""
    found = MemoryStore(3) if request.param == "memory" else SqliteStore(tmp_path / "deep" / "x.sqlite", 3)
    yield found
    await found.aclose()


async def test_observations_are_kept_in_order(store):
    """All fields are read back unchanged."""
    await store.put(seen(1))
    await store.put(seen(2))
    assert await store.all() == [seen(1), seen(2)]


async def test_the_oldest_observation_is_deleted_when_there_are_too_many(store):
    """The file does not grow without bound."""
    for number in range(5):
        await store.put(seen(number))
    assert await store.all() == [seen(2), seen(3), seen(4)]


async def test_the_observations_of_one_model_can_be_forgotten_or_all(store):
    """The others stay."""
    other = replace(SEEN, weights="sha256-b")
    await store.put(SEEN)
    await store.put(other)
    await store.forget("sha256-a")
    assert await store.all() == [other]
    await store.forget(None)
    assert await store.all() == []


async def test_concurrent_puts_are_all_kept(tmp_path):
    """They are written one after the other."""
    store = SqliteStore(tmp_path / "x.sqlite")
    await asyncio.gather(*(store.put(seen(number)) for number in range(20)))
    assert sorted(found.measured_bytes for found in await store.all()) == list(range(20))
    await store.aclose()


async def test_a_file_outlives_the_store_and_can_be_shared(tmp_path):
    """The next router, or a second one, reads the observations of the first."""
    first, second = SqliteStore(tmp_path / "x.sqlite"), SqliteStore(tmp_path / "x.sqlite")
    await first.put(seen(1))
    await second.put(seen(2))
    assert await first.all() == [seen(1), seen(2)]
    await first.aclose()
    await second.aclose()
    again = SqliteStore(tmp_path / "x.sqlite")
    assert await again.all() == [seen(1), seen(2)]
    await again.aclose()


def broken_text(path):
    path.write_bytes(b"this is not a database, and it is long enough to be examined" * 100)


def other_version(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=-5")
    connection.close()


def broken_row(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE observations (id INTEGER PRIMARY KEY, seen BLOB NOT NULL)")
        connection.execute("INSERT INTO observations (seen) VALUES ('{\"weights\":1}')")
    connection.close()


@pytest.mark.parametrize("breaks", [broken_text, other_version, broken_row])
async def test_a_broken_file_is_moved_aside(tmp_path, breaks):
    """It is not deleted, and a new file is used."""
    path = tmp_path / "x.sqlite"
    breaks(path)
    store = SqliteStore(path)
    assert await store.all() == []
    await store.put(seen(1))
    assert await store.all() == [seen(1)]
    assert (store.moved_to, store.error) == (tmp_path / "x.sqlite.broken", "")
    assert store.moved_to.exists()
    await store.aclose()


async def test_a_file_of_a_newer_router_is_left_as_it_is(tmp_path):
    """Byte for byte, also by writes and `forget`; this router remembers in memory, and the operator is told once."""
    path, reports = tmp_path / "x.sqlite", []
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE seen (at REAL, more TEXT)")
        connection.execute("INSERT INTO seen VALUES (1.5, 'what this router does not know')")
        connection.execute("PRAGMA user_version=2")
    connection.close()
    before = path.read_bytes()
    store = SqliteStore(path, report=reports.append)
    assert await store.all() == []
    for number in range(3):
        await store.put(seen(number))
    assert len(await store.all()) == 3
    await store.forget(None)
    await store.aclose()
    assert path.read_bytes() == before
    assert store.moved_to is None
    assert [text.partition(": ")[2] for text in reports] == ["it is of version 2, this router knows versions up to 1"]
    assert [found.name for found in tmp_path.iterdir()] == ["x.sqlite"]


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
async def test_only_its_owner_may_read_the_file(tmp_path, mode):
    """A new one and one that was open to others, with what SQLite writes beside it."""
    path = tmp_path / "x.sqlite"
    if mode is not None:
        path.touch()
        path.chmod(mode)
    store = SqliteStore(path)
    await store.put(seen(1))
    found = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
    assert found == dict.fromkeys(("x.sqlite", "x.sqlite-wal", "x.sqlite-shm"), 0o600)
    await store.aclose()


async def test_what_is_no_regular_file_is_left_as_it_is(tmp_path):
    """Like /dev/null, of which the mode would be that of the whole machine; what is learned is kept in memory."""
    path = tmp_path / "device"
    os.mkfifo(path)
    path.chmod(0o666)
    store = SqliteStore(path)
    await store.put(seen(1))
    assert await store.all() == [seen(1)]
    assert "not a regular file" in store.error
    assert (path.is_fifo(), path.stat().st_mode & 0o777) == (True, 0o666)
    assert [one.name for one in tmp_path.iterdir()] == ["device"]
    await store.aclose()


async def test_without_a_writable_place_observations_are_kept_in_memory(tmp_path):
    """With a read-only disk they are lost at a restart, but not before."""
    (tmp_path / "file").write_text("")
    store = SqliteStore(tmp_path / "file" / "x.sqlite")
    await store.put(seen(1))
    assert await store.all() == [seen(1)]
    assert store.error
    await store.aclose()


async def test_a_locked_file_is_not_moved_aside(tmp_path, monkeypatch):
    """Another process may write for long; the store works again when the lock is released."""
    monkeypatch.setattr("router.adapters.sqlite_file.BUSY_S", 0.01)
    path = tmp_path / "x.sqlite"
    store = SqliteStore(path)
    assert await store.all() == []
    blocker = sqlite3.connect(path)
    blocker.execute("BEGIN EXCLUSIVE")
    await store.put(seen(1))
    assert "locked" in store.error
    blocker.rollback()
    blocker.close()
    await store.put(seen(2))
    assert await store.all() == [seen(2)]
    assert (store.moved_to, store.error) == (None, "")
    await store.aclose()


async def test_with_a_broken_file_that_cannot_be_moved_observations_are_kept_in_memory(tmp_path):
    """And `error` is the reason."""
    path = tmp_path / "x.sqlite"
    broken_text(path)
    (tmp_path / "x.sqlite.broken" / "full").mkdir(parents=True)
    store = SqliteStore(path)
    await store.put(seen(1))
    assert await store.all() == [seen(1)]
    assert store.moved_to is None
    assert store.error


async def test_a_moved_file_is_reported_once(tmp_path):
    """The operator is informed where the old file is, at the first use only."""
    reports = []
    broken_text(tmp_path / "x.sqlite")
    store = SqliteStore(tmp_path / "x.sqlite", report=reports.append)
    for number in range(3):
        await store.put(seen(number))
    assert len(reports) == 1
    assert str(tmp_path / "x.sqlite.broken") in reports[0]
    await store.aclose()


async def test_each_new_error_is_reported_once_and_again_after_a_success(tmp_path, monkeypatch):
    """A disk that stays full causes one log line, not one per load; an error after a success is a new one."""
    monkeypatch.setattr("router.adapters.sqlite_file.BUSY_S", 0.01)
    reports = []
    store = SqliteStore(tmp_path / "x.sqlite", report=reports.append)
    blocker = sqlite3.connect(tmp_path / "x.sqlite")
    for _ in range(2):
        await store.all()
        blocker.execute("BEGIN EXCLUSIVE")
        await store.put(seen(1))
        await store.put(seen(2))
        blocker.rollback()
    blocker.close()
    assert len(reports) == 2
    assert all("locked" in report and str(tmp_path) in report for report in reports)
    await store.aclose()


async def test_cancelling_a_caller_does_not_interrupt_its_write(tmp_path):
    """The row is written nevertheless."""
    store = SqliteStore(tmp_path / "x.sqlite")
    writer = asyncio.create_task(store.put(seen(1)))
    await asyncio.sleep(0)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert await store.all() == [seen(1)]
    await store.aclose()
