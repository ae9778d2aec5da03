"""Usage in a real PostgreSQL: routers share it, nothing is counted twice, and what it cannot take waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from router.adapters.outbox import Outbox
from router.adapters.usage_postgres import PostgresUsage
from router.core.teams.usage import HOUR_S
from router.core.units import MIB
from tests import postgres
from tests.adapters.test_usage_store import HOUR, all_of, batch, key, raw

pytestmark = [pytest.mark.real_time, postgres.is_there]


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as found:
        yield found


@pytest.fixture
def database(server: postgres.Server) -> postgres.Server:
    """Provide the server, without tables."""
    server.ask("DROP TABLE IF EXISTS router_usage, router_usage_batch, router_usage_version")
    return server


@contextmanager
def stopped(server: postgres.Server) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def store_of(
    server: postgres.Server, path: Path | None = None, said: list[str] | None = None, **more: int
) -> PostgresUsage:
    outbox = Outbox(str(path) if path is not None else None, more.pop("max_bytes", MIB))
    return PostgresUsage(server.url, outbox, report=(said if said is not None else []).append, **more)


async def test_two_routers_add_to_the_same_rows(database: postgres.Server) -> None:
    """They may make the tables at the same moment; a batch that is repeated counts once."""
    stores = [store_of(database) for _ in range(3)]
    for seq in (1, 2, 2):
        added = (store.add(batch(seq, key("a"), key("b"), writer=f"w{n}")) for n, store in enumerate(stores))
        assert await asyncio.gather(*added) == [True] * 3
    for store in stores:
        assert await all_of(store, "team") == [("a", 6, 30), ("b", 6, 30)]
        await store.aclose()


async def test_two_routers_with_the_same_outbox_add_a_batch_once(database: postgres.Server, tmp_path: Path) -> None:
    """As during a reload, when the next router already serves: both may send what waits at the same moment."""
    stores = [store_of(database, tmp_path / "o") for _ in range(2)]
    first, second = stores
    assert await first.add(batch(1)) and await second.catch_up()
    with postgres.psycopg.connect(database.url) as other:
        other.execute("LOCK TABLE router_usage IN ACCESS EXCLUSIVE MODE")
        adding = [asyncio.create_task(one.add(batch(2))) for one in stores]
        await asyncio.sleep(0.5)  # both wait for the table
    assert await asyncio.gather(*adding) == [True, True]
    assert await all_of(first) == [(2, 10)]
    for store in stores:
        await store.aclose()


async def test_a_database_that_is_killed_under_load_again_and_again_counts_every_batch_once(
    database: postgres.Server, tmp_path: Path
) -> None:
    """By three routers, of which one keeps in a file what it lacks: whether a batch was written when it died or not."""
    stores = [store_of(database, tmp_path / "o" if n == 0 else None) for n in range(3)]
    sent, stop = [0, 0, 0], asyncio.Event()

    async def writer(n: int) -> None:
        while not stop.is_set():
            sent[n] += 1
            assert await stores[n].add(batch(sent[n], key("a"), key("b"), writer=f"w{n}"))
            await asyncio.sleep(0.002)

    writers = [asyncio.create_task(writer(n)) for n in range(3)]
    for _ in range(3):
        await asyncio.sleep(0.3)
        await asyncio.to_thread(database.kill)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(database.start)
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*writers)
    assert min(sent) > 10
    for store in stores:
        while not await store.catch_up():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await all_of(stores[0], "team") == [(team, sum(sent), 5 * sum(sent)) for team in ("a", "b")]
    for store in stores:
        await store.aclose()


async def test_what_cannot_be_written_waits_in_the_file_also_across_a_restart_of_the_router(
    database: postgres.Server, tmp_path: Path
) -> None:
    """In its order, and each batch counts once; the sentence for the operator does not name the password."""
    said: list[str] = []
    store = store_of(database, tmp_path / "o", said)
    assert await store.add(batch(1))
    with stopped(database):
        assert [await store.add(batch(seq)) for seq in (2, 3)] == [True, True]
        assert (await store.rows(0, 1 << 40, (), 9), bool(store.error)) == (None, True)
        await store.aclose()
    assert (len(said), "secret-word" in said[0]) == (1, False)
    store = store_of(database, tmp_path / "o")
    assert await store.add(batch(4))
    assert (await all_of(store), store.error, await store.catch_up()) == ([(4, 20)], "", True)
    assert await store.add(batch(4))
    assert await all_of(store) == [(4, 20)]
    await store.aclose()


async def test_a_database_that_comes_back_gets_what_waits_without_a_new_request(database: postgres.Server) -> None:
    """In memory, where no file is configured."""
    store = store_of(database)
    with stopped(database):
        assert await store.add(batch(1))
    assert await store.catch_up()
    assert await all_of(store) == [(1, 5)]
    await store.aclose()


async def test_an_end_does_not_wait_for_a_database_that_swallows_everything(tmp_path: Path) -> None:
    """What was kept for it is in the file for the router after it."""
    path, kept = tmp_path / "outbox", batch(1, key("a"), writer="w")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        store = PostgresUsage(url, Outbox(str(path), MIB), report=print)
        assert await store.keep(kept)
        reaching = asyncio.create_task(store.catch_up())
        connection, _ = await asyncio.to_thread(silent.accept)
        await store.aclose()
        assert not reaching.done()
        connection.close()
    assert not await reaching
    after = Outbox(str(path), MIB)
    assert await after.first() == kept
    await after.aclose()


async def test_a_full_outbox_loses_the_oldest_and_counts_them(database: postgres.Server) -> None:
    store = store_of(database, max_bytes=300)
    with stopped(database):
        for seq in range(1, 9):
            assert await store.add(batch(seq))
    assert 0 < store.lost < 8
    assert await store.catch_up()
    assert await all_of(store) == [(8 - store.lost, 5 * (8 - store.lost))]
    await store.aclose()


async def test_an_outbox_that_cannot_be_read_lets_no_later_batch_pass(
    database: postgres.Server, tmp_path: Path
) -> None:
    """The later number would mark the earlier ones as written."""
    (tmp_path / "o").mkdir()
    said: list[str] = []
    store = store_of(database, tmp_path / "o", said)
    assert not await store.add(batch(1))
    assert (len(said), bool(store.error)) == (1, True)
    (tmp_path / "o").rmdir()
    assert await store.add(batch(1))
    assert await all_of(store) == [(1, 5)]
    await store.aclose()


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [("PRAGMA user_version=9", False), ("INSERT INTO waiting (requests, batch) VALUES (1, x'00')", True)],
    ids=["of a newer router", "a batch of another form"],
)
async def test_an_outbox_of_another_version_is_said_and_not_raised(
    database: postgres.Server, tmp_path: Path, change: str, is_kept: bool
) -> None:
    """Whoever writes usage goes on; what the file takes waits there."""
    store = store_of(database, tmp_path / "o")
    assert await store.add(batch(1))
    await store.aclose()
    with raw(tmp_path / "o") as connection:
        connection.execute(change)
    said: list[str] = []
    store = store_of(database, tmp_path / "o", said)
    assert await store.add(batch(2)) is is_kept
    assert (len(said), bool(store.error), await store.catch_up()) == (1, True, False)
    assert await all_of(store) == [(1, 5)]
    await store.aclose()


async def test_months_beyond_keep_days_are_dropped_by_the_clock_of_the_database(database: postgres.Server) -> None:
    """A router whose clock is years ahead drops nothing; what one that is years behind books is counted as lost."""
    ((now,),) = database.ask("SELECT extract(epoch FROM now())::bigint")
    this = int(str(now)) // HOUR_S * HOUR_S
    store = store_of(database, keep_days=60)
    hours = [this - days * 24 * HOUR_S for days in (400, 200, 0, -4000)]
    for seq, hour in enumerate(hours, 1):
        assert await store.add(batch(seq, key("a", hour)))
    assert store.lost == 2
    assert [row[0] for row in await all_of(store, "hour")] == hours[2:]
    await store.aclose()


async def test_tables_of_a_newer_router_are_left_alone(database: postgres.Server) -> None:
    store = store_of(database)
    assert await store.add(batch(1))
    database.ask("UPDATE router_usage_version SET version = 9")
    other = store_of(database)
    assert await other.add(batch(2, writer="other"))
    assert "version 9" in other.error
    assert database.ask("SELECT count(*) FROM router_usage_batch") == [(1,)]
    for one in (store, other):
        await one.aclose()


async def test_a_database_that_holds_its_tables_is_given_up_after_the_time_of_a_statement(
    database: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration or a backup of somebody else must not hold up the usage for ever."""
    monkeypatch.setattr("router.adapters.usage_postgres.STATEMENT_S", 1)
    store = store_of(database)
    assert await store.add(batch(1))
    with postgres.psycopg.connect(database.url) as other:
        other.execute("LOCK TABLE router_usage IN ACCESS EXCLUSIVE MODE")
        assert await store.add(batch(2))
        assert "timeout" in store.error
    assert await store.catch_up()
    assert await all_of(store) == [(2, 10)]
    await store.aclose()


def test_hours_have_the_month_of_their_partition() -> None:
    from router.adapters.usage_postgres import _month_of

    assert _month_of(HOUR) == ("router_usage_2027_01", 1_798_761_600, 1_801_440_000)
