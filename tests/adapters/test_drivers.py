"""Drivers of stores in other servers: named where they are missing, and stores before they can be reached."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from router.adapters.limit_scripts import Script
from router.adapters.outbox import Outbox
from router.adapters.usage_postgres import PostgresUsage
from router.adapters.valkey import StoreLost, ValkeyStore
from router.core.units import MIB
from router.errors import ConfigError


def test_without_the_driver_of_valkey_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkey.asyncio", None)
    with pytest.raises(ConfigError, match=r"shared\.valkey needs .*pip install 'ollama-router\[valkey\]'"):
        ValkeyStore("valkey://127.0.0.1:1")


def test_without_the_driver_of_postgresql_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"usage\.postgres_file needs .*pip install 'ollama-router\[postgres\]'"):
        PostgresUsage("postgresql://127.0.0.1:1/x", Outbox(None, MIB))


SCRIPT = Script("return {1}", ("k",), (), 1)


async def test_without_a_connection_nothing_is_sent_to_valkey() -> None:
    store = ValkeyStore("valkey://127.0.0.1:1")
    with pytest.raises(StoreLost, match="it is not connected"):
        await store.run([SCRIPT], 5.0)


async def test_a_look_up_that_hangs_is_waited_for_and_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its thread: one at each attempt would take all threads."""
    asked: list[str] = []
    may_end = threading.Event()

    def hanging(host: str, *_rest: object) -> None:
        asked.append(host)
        may_end.wait(30)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    store = ValkeyStore("valkey://store.example:6379")
    try:
        for _ in range(3):
            with pytest.raises(StoreLost, match="cannot be reached within 20 ms"):
                await store.connect(0.02)
        assert asked == ["store.example"]
    finally:
        may_end.set()
    with pytest.raises(StoreLost, match="no such host"):
        await store.connect(20.0)
