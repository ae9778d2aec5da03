"""No key is decoration: what can be configured is read by something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.config import schema

ROOT = Path(__file__).parent.parent.parent / "router"
READERS = [path for room in ("", "backend", "routing", "cli") for path in (ROOT / room).glob("*.py")]
READERS.append(ROOT / "config" / "chains.py")
SOURCE = "\n".join(path.read_text() for path in READERS)
SECTIONS = {**schema()["$defs"], "Config": schema()}
KEYS = sorted((name, key) for name, section in SECTIONS.items() for key in section["properties"])


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_key_is_read(section: str, key: str) -> None:
    """The composition root, the command line or the chain rules take the value out of the configuration."""
    assert re.search(rf"\.{key}\b", SOURCE), f"{section}.{key} is never read"
