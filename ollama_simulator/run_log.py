"""The simulator's log in a run directory: those lines of Ollama's log that other programs evaluate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

TEXTS = {
    "starting": 'msg="starting llama-server" cmd="{detail}"',
    "loaded": 'msg="llama-server started" model={name} took="{detail}"',
    "load_failed": 'msg="Load failed" model={name} error="{detail}"',
    "evicting": 'msg="resetting model to expire immediately to make room" model={name}',
    "unloaded": 'msg="runner terminated and removed from list" model={name}',
    "died": 'msg="llama-server terminated" model={name} error="{detail}"',
}


def log_to(path: Path, also: Callable[[str, str, str], None] | None = None) -> Callable[[str, str, str], None]:
    """Return an event sink for `Engine` that appends to `path`, which is created now, and calls `also`."""
    path.touch()

    def sink(what: str, name: str, detail: str) -> None:
        text = TEXTS[what].format(name=name, detail=detail.replace("\n", "\\n").replace('"', "'"))
        with path.open("a") as log:
            log.write(f"time={datetime.now(UTC).isoformat(timespec='milliseconds')} level=INFO {text}\n")
        if also is not None:
            also(what, name, detail)

    return sink
