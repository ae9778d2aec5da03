"""Sizes of cards on the command line: the same forms for every command."""

from __future__ import annotations

import re

from router.errors import ConfigError

_UNITS = {"": 1, "m": 1, "mib": 1, "mb": 1, "g": 1024, "gib": 1024, "gb": 1024}


def mib_of(text: str, *, may_be_none: bool = False) -> int:
    """Return the MiB of ``24564`` or ``24GiB``, the value of an option --gpu; 0 only if there `may_be_none`.

    Raises ConfigError (exit code 2).
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else -1
    if size < 0 or (size == 0 and not may_be_none):
        raise ConfigError(f"--gpu {text}: expected the memory of one card, in MiB (24564) or as 24GiB")
    return size
