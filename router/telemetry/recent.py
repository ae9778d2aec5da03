"""The most recent decisions and switches, for `/router/decisions` and the dashboard."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from router.core.decision.verdict import Decision
from router.telemetry.events import Decided, Event, Finished, Spilled, Switched

_FINISHED = (
    "status",
    "queue_s",
    "ttft_s",
    "duration_s",
    "tokens_out",
    "phase",
    "trace_id",
    "key_id",
    "card_s",
    "load_s",
)


class RecentDecisions:
    """Keeps the last `kept` decisions and switches. They are joined with their ends and rendered only when read."""

    def __init__(self, kept: int = 256, *, unix_now: Callable[[], float] = time.time) -> None:
        self._unix_now = unix_now
        self._begun: deque[tuple[float, Decided | Switched | Spilled]] = deque(maxlen=kept)
        # Twice as many: a request may end without a decision, and must not displace the end of one that has one.
        self._ended: deque[Finished] = deque(maxlen=2 * kept)

    def on(self, event: Event) -> None:
        kind = type(event)
        if kind is Finished:
            self._ended.append(event)  # type: ignore[arg-type]
        elif kind is Decided or kind is Spilled or (isinstance(event, Switched) and event.phase != "started"):
            self._begun.append((self._unix_now(), event))  # type: ignore[arg-type]

    def on_requests(self, decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Keep the decisions and ends of requests."""
        now_s = self._unix_now()
        self._begun.extend([(now_s, event) for event in decided])
        self._ended.extend(finished)

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the rows as plain data, newest first, at most `most` of them.

        Of a request that was decided repeatedly, it is the last decision.
        """
        ends = {event.request_id: event for event in self._ended if event.request_id}
        rows, seen = list[dict[str, Any]](), set[str]()
        for at_s, event in reversed(self._begun):
            if len(rows) == most:
                break
            request_id = event.request_id if isinstance(event, Decided) else ""
            if request_id not in seen or not request_id:  # switches and spills have no request id
                seen.add(request_id)
                rows.append(_rendered(at_s, event, ends.get(request_id)))
        return rows


def _rendered(at_s: float, event: Decided | Switched | Spilled, end: Finished | None) -> dict[str, Any]:
    if isinstance(event, Decided):
        facts = _decided(event)
    elif isinstance(event, Switched):
        facts = {"kind": f"switch {event.phase}", "model": event.model, "evicted": list(event.evicted)}
        facts |= {"duration_s": event.duration_s, "error": event.error, "vram_bytes": event.vram_bytes}
        facts |= {"backend": event.backend, "team": event.team, "request_id": event.request_id}
    else:
        facts = {"kind": "spill", "model": event.model}
        facts |= {"size_bytes": event.size_bytes, "size_vram_bytes": event.size_vram_bytes}
    plain = {"at": round(at_s, 3), **facts}
    if end is not None:
        plain["ended"] = end.outcome
        plain["backend"] = end.backend
        plain.update({name: getattr(end, name) for name in _FINISHED})
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
        "below_best": event.below_best,
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
