"""Usage is kept in a file that survives crashes, repeats, upgrades and faults of the disk; never twice."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from router.adapters.usage_store import MEMORY_DAYS, Row, SqliteUsage
from router.core.teams.usage import FIGURES, HOUR_S, Figures, UsageBatch, UsageKey

HOUR = 1_800_000_000
TOTAL = ("requests", "tokens_in")


def key(team: str = "coding", hour: int = HOUR, model: str = "big") -> UsageKey:
    return UsageKey(hour, team, "ci", model, "local", "chat")


def batch(seq: int, *keys: UsageKey, writer: str = "w", tokens_in: int = 5) -> UsageBatch:
    return UsageBatch(writer, seq, tuple((one, Figures(requests=1, tokens_in=tokens_in)) for one in keys or (key(),)))


async def all_of(store: SqliteUsage, *by: str) -> list[tuple[int | str, ...]]:
    found = await store.rows(0, 1 << 40, by, 100)
    assert found is not None
    return [tuple(row[name] for name in (*by, *TOTAL)) for row in found]


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "usage.sqlite"


async def test_batches_add_up_by_every_name(path: Path) -> None:
    store = SqliteUsage(str(path))
    assert await store.add(batch(1, key("a"), key("b")))
    assert await store.add(batch(2, key("a"), key("a", HOUR + HOUR_S)))
    assert await all_of(store, "team") == [("a", 3, 15), ("b", 1, 5)]
    assert await all_of(store, "hour", "team") == [(HOUR, "a", 2, 10), (HOUR, "b", 1, 5), (HOUR + HOUR_S, "a", 1, 5)]
    assert await all_of(store) == [(4, 20)]
    assert await store.rows(HOUR + HOUR_S, 1 << 40, ["team"], 9) == [
        {"team": "a", **dict.fromkeys(FIGURES, 0), "requests": 1, "tokens_in": 5}
    ]
    assert await store.rows(0, HOUR, ["team"], 9) == []
    await store.aclose()


async def test_a_batch_that_is_repeated_counts_once(path: Path) -> None:
    """By the same store, and by the next one after a restart; a batch of another writer counts."""
    for _ in range(2):
        store = SqliteUsage(str(path))
        for _ in range(2):
            assert await store.add(batch(1))
        await store.aclose()
    store = SqliteUsage(str(path))
    assert await store.add(batch(1, writer="other"))
    assert await all_of(store, "team") == [("coding", 2, 10)]
    await store.aclose()


@pytest.mark.parametrize("_number", range(25))
async def test_stores_that_open_a_new_file_at_once_all_write(path: Path, _number: int) -> None:
    """SQLite itself does not wait while another one turns the file to WAL mode."""
    stores = [SqliteUsage(str(path)) for _ in range(3)]
    assert await asyncio.gather(*(store.add(batch(1, writer=f"w{n}")) for n, store in enumerate(stores))) == [True] * 3
    for store in stores:
        await store.aclose()


async def test_two_stores_share_a_file(path: Path) -> None:
    """As the routers before and after a reload do."""
    stores = [SqliteUsage(str(path)) for _ in range(2)]
    for seq in range(1, 6):
        added = await asyncio.gather(*(store.add(batch(seq, writer=f"w{n}")) for n, store in enumerate(stores)))
        assert added == [True, True]
    assert await all_of(stores[0]) == await all_of(stores[1]) == [(10, 50)]
    for store in stores:
        await store.aclose()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_only_the_owner_may_read_the_file(path: Path) -> None:
    store = SqliteUsage(str(path))
    await store.add(batch(1))
    assert mode_of(path) == 0o600
    await store.aclose()


async def test_a_file_that_is_locked_is_said_once_and_written_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a batch that failed is in it."""
    monkeypatch.setattr("router.adapters.sqlite_file.BUSY_S", 0.01)
    said: list[str] = []
    store = SqliteUsage(str(path), report=said.append)
    await store.add(batch(1))
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert [await store.add(batch(2)) for _ in range(3)] == [False] * 3
        assert await all_of(store) == [(1, 5)]  # it can be read meanwhile
        assert not await store.add(batch(2))
    assert (len(said), "locked" in said[0], "locked" in store.error) == (1, True, True)
    assert await store.add(batch(2))
    assert (await all_of(store), store.error) == ([(2, 10)], "")
    await store.aclose()


async def filled(store: SqliteUsage, said: list[str]) -> list[UsageKey]:
    """Fill a store, by SQLite's own bound of pages: what was written is kept. Return what it had no room for."""
    assert await store.add(batch(1))
    assert store._connection is not None
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages}")
    many = [key(f"team-{number:05d}" * 20) for number in range(200)]
    assert not await store.add(batch(2, *many))
    assert (len(said), "full" in store.error) == (1, True)
    assert await all_of(store) == [(1, 5)]
    return many


async def test_a_full_disk_is_said_once_and_loses_nothing_that_was_written(path: Path) -> None:
    """SQLite's own bound of pages stands for the disk."""
    said: list[str] = []
    store = SqliteUsage(str(path), report=said.append)
    many = await filled(store, said)
    assert await store.add(batch(2, *many))  # on a new connection, without the bound
    assert await all_of(store) == [(201, 1005)]
    await store.aclose()


async def add_and_read(path: Path, said: list[str]) -> tuple[bool, list[Row] | None]:
    store = SqliteUsage(str(path), report=said.append)
    is_added, found = await store.add(batch(1)), await store.rows(0, 1 << 40, ["team"], 9)
    await store.aclose()
    return is_added, found


def test_a_corrupt_file_is_moved_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not SQLite" * 100)
    said: list[str] = []
    is_added, found = asyncio.run(add_and_read(path, said))
    assert (is_added, len(found or [])) == (True, 1)
    assert path.with_name("usage.sqlite.broken").read_bytes().startswith(b"this is not")
    assert (len(said), "moved to" in said[0]) == (1, True)


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with raw(path) as other:
        other.execute("CREATE TABLE usage (of_the_future)")
        other.execute("PRAGMA user_version=99")
    before = path.read_bytes()
    said: list[str] = []
    assert asyncio.run(add_and_read(path, said)) == (False, None)
    assert (path.read_bytes(), len(said)) == (before, 1)
    assert "version 99" in said[0]


async def test_an_older_file_is_brought_forward_with_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step once, in order, together with the version."""
    store = SqliteUsage(str(path))
    await store.add(batch(1))
    await store.aclose()
    from router.adapters import usage_store

    steps = (*usage_store._STEPS, "ALTER TABLE usage ADD COLUMN pages INTEGER NOT NULL DEFAULT 7")
    monkeypatch.setattr(usage_store, "_STEPS", steps)
    for _ in range(2):
        store = SqliteUsage(str(path))
        assert await all_of(store) == [(1, 5)]
        await store.aclose()
    with raw(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (2,)
        assert other.execute("SELECT pages FROM usage").fetchall() == [(7,)]


async def test_a_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from router.adapters import usage_store

    steps = (*usage_store._STEPS, "CREATE TABLE half (a); CREATE TABLE usage (b)")
    monkeypatch.setattr(usage_store, "_STEPS", steps)
    said: list[str] = []
    store = SqliteUsage(str(path), report=said.append)
    assert not await store.add(batch(1))
    await store.aclose()
    with raw(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
        assert other.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall() == []


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    store = SqliteUsage(str(tmp_path / "file" / "usage.sqlite"), report=said.append)
    assert not await store.add(batch(1))
    assert len(said) == 1
    await store.aclose()


DAY_S = 24 * HOUR_S


async def hours_left(store: SqliteUsage) -> list[int]:
    """Return the hours of the store, counted from the first one."""
    found: list[Row] | None = await store.rows(0, 1 << 40, ["hour"], 10_000)
    return [(int(row["hour"]) - HOUR) // HOUR_S for row in found or []]


async def written(store: SqliteUsage, hours: Iterable[int], first: int = 1) -> None:
    """Write a row in each of these hours, one after the other."""
    for seq, hour in enumerate(hours, first):
        await store.add(batch(seq, key("t", HOUR + hour * HOUR_S)))


@pytest.mark.parametrize(("path", "days"), [("usage.sqlite", 30), (None, MEMORY_DAYS)])
async def test_old_hours_are_deleted(path: str | None, days: int, tmp_path: Path) -> None:
    """In memory after a week in any case."""
    store = SqliteUsage(str(tmp_path / path) if path else None, keep_days=30)
    await written(store, range(0, 100 * 24, 6))
    left = await hours_left(store)
    assert (left[0], left[-1]) == ((100 - days) * 24 - 6, 100 * 24 - 6)
    await store.aclose()


async def test_after_a_long_time_off_old_hours_go_day_by_day(path: Path) -> None:
    """A day of them in each hour with usage, the first one after it excepted."""
    store = SqliteUsage(str(path), keep_days=30)
    await written(store, range(0, 10 * 24, 6))
    for hour, oldest in enumerate((0, 24, 48, 72, 96, 120, 144, 168, 192, 216, 90 * 24, 90 * 24)):
        await written(store, [90 * 24 + hour], 100 + hour)
        assert (await hours_left(store))[0] == oldest
    await store.aclose()


@pytest.mark.parametrize("years", [0.2, 1, 5, -5])
async def test_a_clock_that_is_years_off_for_a_while_costs_at_most_a_few_days(years: float, path: Path) -> None:
    """Of the oldest ones, however often the router is started meanwhile; what was written then is in the future."""
    store, jump = SqliteUsage(str(path), keep_days=30), int(years * 365 * 24)
    await written(store, range(0, 30 * 24, 6))
    await store.aclose()
    for seq, hour in enumerate((0, 0, 0, 1, 1, 1, 2, 2)):
        again = SqliteUsage(str(path), keep_days=30)
        await again.add(UsageBatch(f"writer {seq}", 1, batch(1, key("t", HOUR + (720 + jump + hour) * HOUR_S)).rows))
        await again.aclose()
    store = SqliteUsage(str(path), keep_days=30)
    left = [hour for hour in await hours_left(store) if 0 <= hour < 720]
    assert left == list(range(0, 720, 6))[120 - len(left) :]
    assert left[0] <= 3 * 24
    await written(store, [720, 721], 9000)
    assert len([hour for hour in await hours_left(store) if 0 <= hour < 720]) >= 120 - 5 * 4
    await store.aclose()


def test_what_a_killed_process_has_written_is_there(path: Path) -> None:
    """Without closing: the transaction of a batch is all or nothing."""
    child = os.fork()
    if child == 0:
        store = SqliteUsage(str(path))
        store._in_thread(lambda connection: store._insert(connection, batch(1)))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    is_added, found = asyncio.run(add_and_read(path, []))
    assert (is_added, [row["requests"] for row in found or []]) == (True, [1])


def test_a_corrupt_file_that_cannot_be_moved_aside_is_said_once(path: Path) -> None:
    """And left as it is; as soon as it can be moved, a new one is begun."""
    path.parent.mkdir()
    path.write_bytes(b"this is not SQLite" * 100)
    target = path.with_name("usage.sqlite.broken")
    target.mkdir()
    said: list[str] = []

    async def add() -> None:
        store = SqliteUsage(str(path), report=said.append)
        assert [await store.add(batch(1)) for _ in range(2)] == [False, False]
        assert (len(said), "cannot be used" in said[0], bool(store.error)) == (1, True, True)
        assert await asyncio.to_thread(path.read_bytes) == b"this is not SQLite" * 100
        target.rmdir()
        assert await store.add(batch(1))
        assert (await all_of(store), store.error) == ([(1, 5)], "")
        await store.aclose()

    asyncio.run(add())


async def test_usage_in_memory_that_is_full_keeps_what_it_has() -> None:
    """Closing it, as is done with a file, would lose all."""
    said: list[str] = []
    store = SqliteUsage(None, report=said.append)
    await filled(store, said)
    await store.aclose()
