"""What stores in other servers need is installed with an extra, and named where it is missing."""

from __future__ import annotations

import sys

import pytest

from router.adapters.outbox import Outbox
from router.adapters.usage_postgres import PostgresUsage
from router.adapters.valkey import ValkeyStore
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
