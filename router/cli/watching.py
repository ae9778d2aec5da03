"""Notices that a file of the configuration has changed, whatever was done to it.

By looking twice a second: that sees edits in place, files that are moved over others, deleted and created again, and
the swapped links of a Kubernetes ConfigMap alike, also on network and container file systems, which notify of nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

POLL_S = 0.5
"""Interval between two looks; a change counts when the second one of two finds the same."""

State = dict[str, tuple[int, int, int, int] | None]


async def watch(files: Callable[[], Iterable[Path]], on_change: Callable[[], object]) -> None:
    """Call `on_change` when a file has changed and is at rest, until cancelled; `files` returns what to look at."""
    known = before = await asyncio.to_thread(state_of, files)
    while True:
        await asyncio.sleep(POLL_S)
        now = await asyncio.to_thread(state_of, files)
        if now != known and now == before:  # at rest: a file that is still written would be half a configuration
            known = now
            on_change()
        before = now


def state_of(files: Callable[[], Iterable[Path]]) -> State:
    """Return what changes with the files: identity, size and time of each; None for one that is not there."""
    found: State = {}
    for file in files():
        try:
            one = os.stat(file)
            found[str(file)] = one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns
        except (OSError, ValueError):
            found[str(file)] = None
    return found
