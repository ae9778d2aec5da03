"""The last decisions and switches, for `/router/decisions` and the dashboard."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Any

from router.core.policy import Decision
from router.telemetry.events import Decided, Event, Finished, Spilled, Switched

_FINISHED = ("status", "queue_s", "ttft_s", "duration_s", "tokens_out", "phase")


class RecentDecisions:
    """A ring of the last `kept` rows; verdicts are rendered when they are read, not when they happen."""

    def __init__(self, kept: int = 256, *, unix_now: Callable[[], float] = time.time) -> None:
        self._kept = kept
        self._unix_now = unix_now
        self._rows: OrderedDict[str | int, dict[str, Any]] = OrderedDict()
        self._numbers = count()

    def on(self, event: Event) -> None:
        match event:
            case Decided():
                self._add(event.request_id or next(self._numbers), _decided(event))
            case Finished():
                self._end(event)
            case Switched() if event.phase != "started":
                facts = {"model": event.model, "evicted": list(event.evicted), "duration_s": event.duration_s}
                self._add(next(self._numbers), {"kind": f"switch {event.phase}", **facts, "error": event.error})
            case Spilled():
                sizes = {"size_bytes": event.size_bytes, "size_vram_bytes": event.size_vram_bytes}
                self._add(next(self._numbers), {"kind": "spill", "model": event.model, **sizes})
            case _:
                pass

    def rows(self) -> list[dict[str, Any]]:
        """The rows, newest first, as plain data."""
        return [_rendered(row) for row in reversed(self._rows.values())]

    def _add(self, key: str | int, row: dict[str, Any]) -> None:
        self._rows[key] = {"at": round(self._unix_now(), 3), **row}
        if len(self._rows) > self._kept:
            self._rows.popitem(last=False)

    def _end(self, event: Finished) -> None:
        row = self._rows.get(event.request_id)
        if row is not None:
            row["ended"] = event.outcome
            row.update({name: getattr(event, name) for name in _FINISHED})


def _decided(event: Decided) -> dict[str, Any]:
    return {
        "kind": "request",
        "request_id": event.request_id,
        "team": event.team,
        "requested": event.requested,
        "chosen": event.chosen,
        "outcome": event.outcome,
        "reason": event.reason,
        "decision": event.decision,
    }


def _rendered(row: dict[str, Any]) -> dict[str, Any]:
    decision = row.get("decision")
    plain = {key: value for key, value in row.items() if key != "decision"}
    return {**plain, "verdicts": _verdicts(decision)} if isinstance(decision, Decision) else plain


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
