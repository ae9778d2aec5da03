"""The audit: a JSON line for each request to a model, for each one that manages models, and for refusals.

Who has used what, and when: no prompt, no answer, no text of an error, no key. The sums of its tokens are those of the
usage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from router.core.masking import masked_lines, may_hold_secret
from router.telemetry.events import Answered, Decided, Event, Finished
from router.telemetry.log import texts_of
from router.telemetry.usage import in_ms

REFUSALS, REFUSALS_S = 20, 10.0
"""Most refusals in a period, and its seconds: who is refused must not rotate away what others have done."""


class AuditLine(msgspec.Struct):
    """One request. Times are in milliseconds; tokens are null if the answer said none."""

    ts: str
    request_id: str
    trace_id: str
    team: str
    key_id: str
    client: str
    method: str
    route: str
    requested: str
    variant: str
    backend: str
    status: int
    outcome: str
    tokens_in: int | None
    tokens_out: int | None
    queue_ms: int
    load_ms: int
    card_ms: int
    duration_ms: int
    bytes: int


class AuditHook:
    """Gives `sink` a line for each request that has ended; `unix_now` is the wall clock.

    `now` never jumps: by it refusals are counted; `left_out` is how many were too many. A path that is in no table is
    not repeated: it may hold anything.
    """

    def __init__(
        self,
        sink: Callable[[bytes], None],
        *,
        unix_now: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._unix_now, self._now = unix_now, now
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._since_s, self._refusals = -REFUSALS_S, 0
        self.left_out = 0

    def on_requests(self, _decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Write the lines of a batch at once."""
        if finished:
            ts = self._ts()
            lines = self._encode_lines([_of_model(ts, event) for event in finished])
            self._sink(masked_lines(lines) if may_hold_secret(texts_of(finished)) else lines)

    def on(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.on_requests((), (event,))
        elif isinstance(event, Answered) and not (event.status >= 400 and self._is_too_many()):
            self._sink(masked_lines(self._encode_lines([_line(self._ts(), event)])))

    def _is_too_many(self) -> bool:
        """Count a refusal; return True if it is one too many."""
        now_s = self._now()
        if now_s - self._since_s >= REFUSALS_S:
            self._since_s, self._refusals = now_s, 0
        self._refusals += 1
        is_too_many = self._refusals > REFUSALS
        self.left_out += is_too_many
        return is_too_many

    def _ts(self) -> str:
        return datetime.fromtimestamp(self._unix_now(), UTC).isoformat(timespec="milliseconds")


def _of_model(ts: str, event: Finished) -> AuditLine:
    return _line(
        ts,
        event,
        variant=event.variant,
        backend=event.backend,
        tokens_in=event.tokens_in,
        tokens_out=event.tokens_out,
        queue_ms=in_ms(event.queue_s),
        load_ms=in_ms(event.load_s),
        card_ms=in_ms(event.card_s),
    )


def _line(
    ts: str,
    event: Finished | Answered,
    *,
    variant: str = "",
    backend: str = "",
    tokens_in: int | None = None,
    tokens_out: int | None = None,
    queue_ms: int = 0,
    load_ms: int = 0,
    card_ms: int = 0,
) -> AuditLine:
    """Return the line of a request; only one that reached the dispatcher has more than what the event says."""
    return AuditLine(
        ts,
        event.request_id,
        event.trace_id,
        event.team,
        event.key_id,
        event.client,
        event.method,
        event.route,
        event.requested,
        variant,
        backend,
        event.status,
        event.outcome,
        tokens_in,
        tokens_out,
        queue_ms,
        load_ms,
        card_ms,
        in_ms(event.duration_s),
        event.sent_bytes,
    )
