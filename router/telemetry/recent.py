"""The last decisions and switches, for `/router/decisions` and the dashboard."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from router.core.policy import Decision
from router.telemetry.events import Decided, Event, Finished, Spilled, Switched

_FINISHED = ("status", "queue_s", "ttft_s", "duration_s", "tokens_out", "phase")


@dataclass(slots=True)
class Row:
    """What happened at a time, and how it ended. Events are kept as they are: most are never looked at."""

    at_s: float
    event: Decided | Switched | Spilled
    end: Finished | None = None


class RecentDecisions:
    """A ring of the last `kept` rows; they are rendered when they are read, not when they happen."""

    def __init__(self, kept: int = 256, *, unix_now: Callable[[], float] = time.time) -> None:
        self._kept = kept
        self._unix_now = unix_now
        self._rows: OrderedDict[str | int, Row] = OrderedDict()
        self._numbers = count()

    def on(self, event: Event) -> None:
        if isinstance(event, Finished):
            if (row := self._rows.get(event.request_id)) is not None:
                row.end = event
        elif isinstance(event, Decided):
            self._add(event.request_id or next(self._numbers), event)
        elif isinstance(event, Spilled) or (isinstance(event, Switched) and event.phase != "started"):
            self._add(next(self._numbers), event)

    def rows(self) -> list[dict[str, Any]]:
        """The rows, newest first, as plain data."""
        return [_rendered(row) for row in reversed(self._rows.values())]

    def _add(self, key: str | int, event: Decided | Switched | Spilled) -> None:
        self._rows[key] = Row(self._unix_now(), event)
        if len(self._rows) > self._kept:
            self._rows.popitem(last=False)


def _rendered(row: Row) -> dict[str, Any]:
    event = row.event
    if isinstance(event, Decided):
        facts = _decided(event)
    elif isinstance(event, Switched):
        facts = {"kind": f"switch {event.phase}", "model": event.model, "evicted": list(event.evicted)}
        facts |= {"duration_s": event.duration_s, "error": event.error}
    else:
        facts = {"kind": "spill", "model": event.model}
        facts |= {"size_bytes": event.size_bytes, "size_vram_bytes": event.size_vram_bytes}
    plain = {"at": round(row.at_s, 3), **facts}
    if row.end is not None:
        plain["ended"] = row.end.outcome
        plain.update({name: getattr(row.end, name) for name in _FINISHED})
    if isinstance(event, Decided) and event.decision is not None:
        plain["verdicts"] = _verdicts(event.decision)
    return plain


def _decided(event: Decided) -> dict[str, Any]:
    return {
        "kind": "request",
        "request_id": event.request_id,
        "team": event.team,
        "requested": event.requested,
        "chosen": event.chosen,
        "outcome": event.outcome,
        "reason": event.reason,
    }


def _verdicts(decision: Decision) -> list[dict[str, Any]]:
    return [
        {
            "model": verdict.variant.model,
            "num_ctx": verdict.num_ctx,
            "verdict": verdict.kind.value,
            "need_bytes": verdict.need_bytes,
            "have_bytes": verdict.have_bytes,
            "detail": verdict.detail,
        }
        for verdict in decision.verdicts
    ]
