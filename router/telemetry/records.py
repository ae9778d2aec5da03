"""Records of Python's logging (the router's own faults, asyncio's warnings) as JSON lines like all others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from router.core.go.quoting import brief
from router.core.masking import masked_lines

MOST_OF_A_TRACEBACK = 16 << 10


class RecordLines(logging.Handler):
    """Writes each record as one line to `sink`, its traceback included."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        super().__init__(logging.WARNING)
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Never raises: what cannot be rendered is left out."""
        try:
            self._sink(masked_lines(msgspec.json.encode(_facts(record))) + b"\n")
        except Exception:  # a fault in the report of a fault must not become another one
            self._sink(b'{"level":"error","msg":"a log record could not be written"}\n')


def _facts(record: logging.LogRecord) -> dict[str, str]:
    facts = {
        "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "msg": brief(record.getMessage()),
        "logger": record.name,
    }
    if record.exc_info:
        text = logging.Formatter().formatException(record.exc_info)
        facts["traceback"] = text[-MOST_OF_A_TRACEBACK:].encode("utf-8", "replace").decode()
    return facts
