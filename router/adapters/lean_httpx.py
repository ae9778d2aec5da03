"""httpx without its command line: importing that takes 5 MB for libraries which no router uses.

Import httpx from here: `from router.adapters.lean_httpx import httpx`.
"""

from __future__ import annotations

import sys

__all__ = ["httpx"]

_COMMAND_LINE = "httpx._main"
_is_first = "httpx" not in sys.modules

if _is_first:  # httpx goes on without it, as where these libraries are not installed
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]

import httpx  # noqa: E402

if _is_first:
    del sys.modules[_COMMAND_LINE]
