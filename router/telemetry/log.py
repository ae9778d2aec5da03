"""The log: one JSON line at the end of each request, and one for each event that concerns an operator. No prompts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import chain
from operator import attrgetter

import msgspec

from router.core.go.quoting import brief
from router.core.masking import masked_lines, may_hold_secret
from router.telemetry.events import (
    Answered,
    Decided,
    Event,
    Finished,
    Measured,
    Notified,
    ProbeBack,
    ProbeLost,
    Spilled,
    Switched,
    TaskFailed,
    UpstreamDown,
    UpstreamGone,
    UpstreamUp,
)

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
Facts = dict[str, object]


REFUSALS, REFUSALS_S = 20, 10.0
"""Most refusals logged in a period, and its seconds: a flood of them is no flood of lines. The rest is counted."""

_REPEATED = attrgetter("requested", "variant", "reason", "client", "error")
_CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]")  # DEL and C1, which JSON leaves as they are and terminals act on


class RequestLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The line of one request. A struct because its keys are encoded once, and it is built in one call."""

    ts: str
    level: str
    msg: str
    request_id: str
    team: str
    method: str
    route: str
    status: int
    requested: str
    variant: str
    backend: str
    reason: str
    queue_ms: float | None
    ttft_ms: float | None
    duration_ms: float | None
    tokens_in: int | None
    tokens_out: int | None
    bytes: int
    outcome: str
    trace_id: str = ""
    error: str = ""
    client: str = ""
    key_id: str = ""
    card_ms: float | None = None
    load_ms: float = 0.0


class LogHook:
    """Gives `sink` each event of at least `level` as one line; `unix_now` is the wall clock.

    `now` never jumps: by it refusals are counted. `fields` are those of a request's line, () for all of them. The lines
    of a batch of requests are one write: a write per request would cost more than rendering its line.
    """

    def __init__(
        self,
        level: str = "info",
        *,
        sink: Callable[[bytes], None],
        unix_now: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
        fields: Sequence[str] = (),
    ) -> None:
        self._fields = fields
        self._min_level = LEVELS[level]
        self._sink = sink
        self._unix_now, self._now = unix_now, now
        encoder = msgspec.json.Encoder()
        self._encode, self._encode_lines = encoder.encode, encoder.encode_lines
        self._second = -1
        self._date = ""
        self._refusals_since_s, self._refusals = -REFUSALS_S, 0

    def on(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.on_requests((), (event,))
            return
        if isinstance(event, Decided) and event.outcome != "rejected" and self._min_level > LEVELS["debug"]:
            return  # there is one per request: skip it before it is rendered
        if isinstance(event, Answered):
            self._on_answered(event)
            return
        level, message, facts = _line(event)
        if LEVELS.get(level, 0) >= self._min_level:
            self._put({"ts": self._ts(self._unix_now()), "level": level, "msg": message, **facts})

    def on_requests(self, decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Write a batch of requests' events: their ends, and their decisions if the level or a refusal requires it."""
        is_debug = self._min_level <= LEVELS["debug"]
        for event in [event for event in decided if is_debug or event.outcome == "rejected"]:
            self.on(event)
        if finished and self._min_level <= LEVELS["info"]:
            ts = self._ts(self._unix_now())
            lines = [_request(ts, event) for event in finished]
            encoded = self._encode_lines(list(map(self._chosen, lines)) if self._fields else lines)
            self._sink(_escaped(masked_lines(encoded) if may_hold_secret(texts_of(finished)) else encoded))

    def _on_answered(self, event: Answered) -> None:
        """Write a request that did not reach the dispatcher; of many refusals only the first, and then their number."""
        if self._min_level > LEVELS["info"]:
            return
        if event.status >= 400:
            now_s = self._now()
            if now_s - self._refusals_since_s >= REFUSALS_S:
                self.flush()
                self._refusals_since_s, self._refusals = now_s, 0
            self._refusals += 1
            if self._refusals > REFUSALS:
                return
        self._put(self._chosen(_answered(self._ts(self._unix_now()), event)))

    def _chosen(self, line: RequestLine) -> RequestLine | dict[str, object]:
        """Return a request's line with the fields that are wanted."""
        return {name: getattr(line, name) for name in self._fields} if self._fields else line

    def flush(self) -> None:
        """Say how many refusals were left out, if there were any."""
        left_out, self._refusals = max(0, self._refusals - REFUSALS), min(self._refusals, REFUSALS)
        if left_out:
            message = "more refused requests were not logged"
            self._put({"ts": self._ts(self._unix_now()), "level": "warning", "msg": message, "count": left_out})

    def _put(self, line: object) -> None:
        self._sink(_escaped(masked_lines(self._encode(line) + b"\n")))

    def _ts(self, at_s: float) -> str:
        """Return a time in ISO 8601 with milliseconds; the part up to the seconds is cached."""
        thousandths = int(at_s * 1000)
        second, rest = divmod(thousandths, 1000)
        if second != self._second:
            self._second, self._date = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._date}.{rest:03d}+00:00"


def _line(event: Event) -> tuple[str, str, Facts]:
    """Return level, message and facts of an event; the level "" is never written."""
    match event:
        case Decided():
            level = "info" if event.outcome == "rejected" else "debug"
            return level, "decided", _decided(event)
        case Switched():
            return _switch(event)
        case Spilled():
            sizes: Facts = {"size_bytes": event.size_bytes, "size_vram_bytes": event.size_vram_bytes}
            return "warning", "model spilled after its load", {"model": event.model, **sizes, **_cause(event)}
        case Measured():
            foreseen: Facts = {"predicted_bytes": event.predicted_bytes, "measured_bytes": event.measured_bytes}
            return "debug", "load measured", {"model": event.model, **foreseen}
        case ProbeLost():
            return "warning", "free memory cannot be read", {"probe": event.probe, "error": event.error}
        case ProbeBack():
            return "info", "free memory can be read again", {"probe": event.probe}
        case TaskFailed():
            level = "debug" if event.is_repeated else "error"
            about = {"about": event.about} if event.about else {}
            return level, f"{event.task} failed and is begun again", {**about, "error": event.error}
        case UpstreamDown():
            return "error", "Ollama does not answer", {"backend": event.backend, "error": event.error}
        case UpstreamUp():
            return "info", "Ollama answers", {"backend": event.backend, "version": event.version}
        case UpstreamGone():
            return "info", "no node has this name any more", {"backend": event.backend}
        case Notified():
            return event.level, event.message, {}
        case _:
            return "", "", {}


def _request(ts: str, event: Finished) -> RequestLine:
    return RequestLine(
        ts,
        "info",
        "request",
        event.request_id,
        event.team,
        event.method,
        event.route,
        event.status,
        event.requested,
        event.variant,
        event.backend,
        event.reason,
        _ms(event.queue_s) if event.queue_s else 0.0,
        _ms(event.ttft_s) if event.ttft_s is not None else None,
        _ms(event.duration_s),
        event.tokens_in,
        event.tokens_out,
        event.sent_bytes,
        event.outcome,
        event.trace_id,
        event.error and brief(event.error),
        event.client,
        event.key_id,
        _ms(event.card_s),
        (_ms(event.load_s) or 0.0) if event.load_s else 0.0,
    )


def _answered(ts: str, event: Answered) -> RequestLine:
    return RequestLine(
        ts,
        "info",
        "request",
        event.request_id,
        event.team,
        event.method,
        event.route,
        event.status,
        event.requested,
        "",
        "",
        "",
        0.0,
        None,
        _ms(event.duration_s),
        None,
        None,
        event.sent_bytes,
        event.outcome,
        event.trace_id,
        brief(event.error),
        event.client,
        event.key_id,
    )


def texts_of(events: Sequence[Finished]) -> str:
    """Return what others have written of these events, each text once: a secret can only be in that.

    To look for secrets in whole lines would cost as much as a decision.
    """
    return "\n".join([*[one.request_id for one in events], *chain.from_iterable(set(map(_REPEATED, events)))])


def _escaped(lines: bytes) -> bytes:
    """Return JSON lines with every control character escaped. A common batch has none, which two look-ups tell."""
    if b"\x7f" not in lines and b"\xc2" not in lines:
        return lines
    return _CONTROLS.sub(lambda found: b"\\u00%02x" % found[0][-1], lines)


def _decided(event: Decided) -> Facts:
    return {
        "request_id": event.request_id,
        "team": event.team,
        "requested": event.requested,
        "variant": event.chosen,
        "outcome": event.outcome,
        "reason": event.reason,
        **({"below_best": event.below_best} if event.below_best else {}),
    }


def _switch(event: Switched) -> tuple[str, str, Facts]:
    line: Facts = {"model": event.model, "evicted": event.evicted}
    if event.duration_s is not None:
        line["duration_ms"] = _ms(event.duration_s)
    if event.error:
        line["error"] = event.error
    if event.request_id:
        line["request_id"] = event.request_id
    line |= _cause(event)
    return "warning" if event.phase == "failed" else "info", f"switch {event.phase}", line


def _cause(event: Switched | Spilled) -> Facts:
    """Return on which backend, and for which team; without what is not known."""
    facts = {"backend": event.backend, "team": event.team, "key_id": event.key_id}
    return {name: value for name, value in facts.items() if value}


def _ms(seconds: float | None) -> float | None:
    """Return milliseconds, rounded to a tenth; three times as fast as `round`."""
    return None if seconds is None else int(seconds * 10_000 + 0.5) / 10
