"""Counts calls, of code that is run as it is."""

from __future__ import annotations

import sys
from contextlib import contextmanager


@contextmanager
def counted(function):
    """Count the calls of a function meanwhile."""
    calls: list[None] = []

    def note(frame, event, _argument):
        if event == "call" and frame.f_code is function.__code__:
            calls.append(None)

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
