"""NVIDIA's library, imported at its first use: 16 MB and 50 ms that machines without such a card do not spend."""

from __future__ import annotations

import importlib
from typing import Any


class _Library:
    """Has the attributes of the module `pynvml`, which is imported when the first one is read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("pynvml"), name)


pynvml: Any = _Library()
