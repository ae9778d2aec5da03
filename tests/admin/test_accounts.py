"""What a start reads of the usage of today, and how the last usage is written at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ollama_simulator.clock import run_virtual
from router.adapters.usage_store import Row
from router.admin.accounts import LAST_ROWS_S, MOST_ROWS, RESTORE_S, Accounts
from router.config import Audit
from router.core.teams.usage import FIGURES, UsageBatch
from router.errors import RouterError
from router.telemetry import Finished


class Store:
    """A store that answers after `wait_s`."""

    error, lost = "", 0

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self.kept: list[UsageBatch] = []

    async def add(self, _batch: UsageBatch) -> bool:
        return True

    async def keep(self, batch: UsageBatch) -> bool:
        self.kept.append(batch)
        return True

    async def catch_up(self) -> bool:
        await asyncio.sleep(self._wait_s)
        return True

    async def rows(self, _since: int, _until: int, _by: Sequence[str], _most: int) -> list[Row] | None:
        await asyncio.sleep(self._wait_s)
        return [{"team": "coding", **dict.fromkeys(FIGURES, 0), "tokens_in": 5, "tokens_out": 7}]

    async def aclose(self) -> None:
        self.error = "closed"


def restored(wait_s: float) -> tuple[dict[str, int], float]:
    """Return what was restored from a store that answers after `wait_s`, and how long that took."""

    async def story() -> tuple[dict[str, int], float]:
        accounts = Accounts(Store(wait_s), 5.0, Audit(), lambda _name: True, print, flush=lambda: None, unix_now=float)
        found: dict[str, int] = {}
        await accounts.restore(found.__setitem__)
        return found, asyncio.get_running_loop().time()

    return run_virtual(story())


def test_a_start_goes_on_with_the_tokens_of_today() -> None:
    assert restored(0.5) == ({"coding": 12}, 0.5)


def test_a_start_does_not_wait_for_a_store_that_hangs() -> None:
    """The teams begin with nothing."""
    assert restored(1e6) == ({}, RESTORE_S)


def test_an_end_keeps_the_last_usage_and_does_not_wait_for_a_database_that_hangs() -> None:
    async def story() -> tuple[Store, float]:
        store = Store(1e6)
        accounts = Accounts(store, 5.0, Audit(), lambda _name: True, print, flush=lambda: None, unix_now=float)
        for hook in accounts.hooks:
            hook.on(Finished("", "coding", "/api/chat", 200, "m", "m", "completed", operation="chat"))
        await accounts.stop()
        return store, asyncio.get_running_loop().time()

    store, took_s = run_virtual(story())
    assert [figures.requests for batch in store.kept for _, figures in batch.rows] == [1]
    assert (store.error, took_s) == ("closed", LAST_ROWS_S)


class Answering(Store):
    """A store whose rows are given; None if it cannot be read."""

    def __init__(self, found: list[Row] | None) -> None:
        super().__init__(0.0)
        self._found = found
        self.error = "" if found is not None else "the disk is gone"

    async def rows(self, _since: int, _until: int, _by: Sequence[str], most: int) -> list[Row] | None:
        return self._found[:most] if self._found is not None else None


@pytest.mark.parametrize(
    ("found", "text"),
    [(None, "the usage cannot be read: the disk is gone"), ([{}] * (MOST_ROWS + 5), "ask for fewer hours")],
)
def test_usage_that_cannot_be_read_or_is_too_long_is_an_error_and_not_a_part_of_it(
    found: list[Row] | None, text: str
) -> None:
    async def story() -> None:
        store = Answering(found)
        accounts = Accounts(store, 5.0, Audit(), lambda _name: True, print, flush=lambda: None, unix_now=float)
        with pytest.raises(RouterError, match=text):
            await accounts.rows(0, 1, ("team",))

    run_virtual(story())


def test_without_usage_requests_are_not_counted() -> None:
    async def hooks(*, counts_usage: bool) -> int:
        accounts = Accounts(
            Store(0.0),
            5.0,
            Audit(),
            lambda _name: True,
            print,
            flush=lambda: None,
            unix_now=float,
            counts_usage=counts_usage,
        )
        return len(accounts.hooks)

    assert [run_virtual(hooks(counts_usage=counts)) for counts in (True, False)] == [1, 0]
