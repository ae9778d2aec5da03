"""What waits for a database is written whole, and by one at a time."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from router.adapters.outbox import Outbox
from router.core.units import MIB
from tests.adapters.test_usage_store import batch, key


async def started() -> None:
    """Let what was begun come to where it waits for its turn, or for a thread."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_caller_that_gives_up_neither_interrupts_a_write_nor_lets_a_close_in_beside_it(tmp_path: Path) -> None:
    """As a stop does whose time is over while another process holds the file."""
    path = tmp_path / "o"
    outbox = Outbox(str(path), MIB)
    assert await outbox.put(batch(1))
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        putting = asyncio.ensure_future(outbox.put(batch(2)))
        await started()
        putting.cancel()
        with suppress(asyncio.CancelledError):
            await putting
        closing_it = asyncio.ensure_future(outbox.aclose())
        await started()
        assert not closing_it.done()
        other.rollback()
        await closing_it
    again = Outbox(str(path), MIB)
    waiting = []
    while (first := await again.first()) is not None:
        waiting.append(first.seq)
        await again.drop(first)
    assert waiting == [1, 2]
    await again.aclose()


async def test_only_the_oldest_batch_is_dropped(tmp_path: Path) -> None:
    """One that another router has dropped meanwhile takes no other with it."""
    outbox = Outbox(str(tmp_path / "o"), MIB)
    for seq in (1, 2):
        assert await outbox.put(batch(seq))
    await outbox.drop(batch(1))
    await outbox.drop(batch(1))
    assert await outbox.first() == batch(2)
    await outbox.aclose()


async def test_after_a_failure_the_file_is_opened_anew(tmp_path: Path) -> None:
    """SQLite's own bound of pages stands for the disk; it is one of the connection."""
    outbox = Outbox(str(tmp_path / "o"), MIB)
    assert await outbox.put(batch(1))
    assert outbox._connection is not None
    (pages,) = outbox._connection.execute("PRAGMA page_count").fetchone()
    outbox._connection.execute(f"PRAGMA max_page_count={pages}")
    large = batch(2, *(key(f"team-{number:05d}" * 20) for number in range(200)))
    assert not await outbox.put(large)
    assert await outbox.put(large)
    assert await outbox.first() == batch(1)
    await outbox.drop(batch(1))
    assert await outbox.first() == large
    await outbox.aclose()


async def test_what_waits_in_memory_outlives_a_failure() -> None:
    """Closing it, as is done with a file, would lose all."""
    outbox = Outbox(None, MIB)
    assert await outbox.put(batch(1))
    assert outbox._connection is not None
    (pages,) = outbox._connection.execute("PRAGMA page_count").fetchone()
    outbox._connection.execute(f"PRAGMA max_page_count={pages}")
    assert not await outbox.put(batch(2, *(key(f"team-{number:05d}" * 20) for number in range(200))))
    assert await outbox.first() == batch(1)
    await outbox.aclose()
