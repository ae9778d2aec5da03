"""The events. Each carries facts as plain values; an unknown value is None or "", never 0.

`backend` is the Ollama that an event is about; `Telemetry.of` fills it in.

Events are msgspec structs because two are built per request, and a frozen dataclass of twenty fields takes ten times as
long to build. The garbage collector does not look at those of requests: they refer to nothing that refers to them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from router.core.decision.verdict import Decision
from router.core.teams.team import ANYONE


class Decided(msgspec.Struct, frozen=True, gc=False):
    """A variant was chosen for a request, or the request was refused (`chosen` is "").

    `outcome` is exact, fallback, passthrough or rejected. `cause` is the kind of the first verdict in one word, for
    metric labels: `reason` may contain model names. `decision` is rendered only on demand. `below_best` is the reason
    in one word why a bigger variant that would fit does not serve; "" if none would.
    """

    request_id: str
    team: str
    requested: str
    chosen: str
    reason: str
    outcome: str
    chain: str = ""
    cause: str = ""
    decision: Decision | None = None
    below_best: str = ""

    def for_request(self, request_id: str, team: str) -> Decided:
        """Return this decision for one request. Written out because `replace` takes five times as long."""
        return Decided(
            request_id,
            team,
            self.requested,
            self.chosen,
            self.reason,
            self.outcome,
            self.chain,
            self.cause,
            self.decision,
            self.below_best,
        )


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """The span of a request that is recorded. Ids are in hexadecimal; `parent_id` is the client's span, "" if none."""

    trace_id: str
    span_id: str
    parent_id: str = ""

    def header(self) -> bytes:
        """Return the value of `traceparent` for whatever is asked on behalf of the request."""
        return f"00-{self.trace_id}-{self.span_id}-01".encode()


class Finished(msgspec.Struct, frozen=True, gc=False):
    """A request ended; emitted exactly once for each request that reached the dispatcher.

    `outcome` is completed, client_gone, upstream_error, shed, shutdown or failed. `duration_s` is the time from the
    first byte of the request to the last of the answer, `ttft_s` to the first of the answer; `queue_s` is the part
    spent waiting. `phase` is where a client left: queued, before_answer or stream.

    `card_s` is its share of the time that it occupied a runner with `vram_bytes` of VRAM, `load_s` the time of the
    switches that it caused. `trace_id` is that of the client's `traceparent`, `span` its own span if requests are
    traced. `attempted` is whether it was sent upstream.
    """

    request_id: str
    team: str
    route: str
    status: int
    requested: str
    variant: str
    outcome: str
    queue_s: float = 0.0
    sent_bytes: int = 0
    duration_s: float | None = None
    ttft_s: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    reason: str = ""
    method: str = "POST"
    backend: str = "local"
    operation: str = ""
    trace_id: str = ""
    phase: str = ""
    error: str = ""
    client: str = ""
    key_id: str = ""
    card_s: float | None = None
    load_s: float = 0.0
    vram_bytes: int | None = None
    span: TraceContext | None = None
    attempted: bool = True


class Answered(msgspec.Struct, frozen=True):
    """A request ended that did not reach the dispatcher: it was refused, or it manages models or the account.

    `requested` are the names in its body, `client` is the address that it came from, `error` why it was refused.
    """

    request_id: str
    method: str
    route: str
    status: int
    outcome: str
    requested: str = ""
    client: str = ""
    duration_s: float | None = None
    sent_bytes: int = 0
    error: str = ""
    team: str = ANYONE.team.name
    key_id: str = ""
    trace_id: str = ""


class Switched(msgspec.Struct, frozen=True):
    """A switch of the loaded models; `phase` is started, finished or failed (`error` is the reason).

    `vram_bytes` is what the model needs. `team`, `key_id`, `request_id` and `operation` are those of the request that
    caused it, "" if none did (a model that is loaded at start).
    """

    phase: str
    model: str
    evicted: tuple[str, ...] = ()
    duration_s: float | None = None
    error: str = ""
    backend: str = ""
    vram_bytes: int | None = None
    team: str = ""
    key_id: str = ""
    request_id: str = ""
    operation: str = ""


class Measured(msgspec.Struct, frozen=True):
    """The memory that a load took was measured, and is compared with the prediction."""

    model: str
    predicted_bytes: int
    measured_bytes: int
    backend: str = ""


class Spilled(msgspec.Struct, frozen=True):
    """A load did not end up fully on the GPU. The model is unloaded again, and the observation kept."""

    model: str
    size_bytes: int
    size_vram_bytes: int
    backend: str = ""
    team: str = ""
    key_id: str = ""


class QueueChanged(msgspec.Struct, frozen=True):
    """The number of requests that wait for their model's turn changed to `depth`. Many changes are told at once."""

    depth: int
    backend: str = ""


class Rejected(msgspec.Struct, frozen=True):
    """A request was refused because of a limit of its own team; `reason` is the limit's key in the team's file."""

    team: str
    reason: str


class ProbeLost(msgspec.Struct, frozen=True):
    """The probe of free memory failed, after it had worked."""

    probe: str
    error: str
    backend: str = ""


class ProbeBack(msgspec.Struct, frozen=True):
    """The probe of free memory works again."""

    probe: str
    backend: str = ""


class UpstreamDown(msgspec.Struct, frozen=True):
    """The upstream stopped answering, or does not answer at start."""

    error: str
    backend: str = "local"


class UpstreamUp(msgspec.Struct, frozen=True):
    """The upstream answered for the first time, or again."""

    version: str
    backend: str = "local"


class UpstreamGone(msgspec.Struct, frozen=True):
    """A node is no member any more, or has another name now: nothing is to be said of this one from now on."""

    backend: str


class LoopLagged(msgspec.Struct, frozen=True):
    """The event loop ran a timer `lag_s` late."""

    lag_s: float


class TaskFailed(msgspec.Struct, frozen=True):
    """Work that is to go on for as long as the router ended by a fault; it is begun again after a pause.

    `is_repeated`: with the same fault as the last time. `about` is which one of many that do the same work: `task` is
    one of few names, by which faults are counted.
    """

    task: str
    error: str
    is_repeated: bool = False
    backend: str = ""
    about: str = ""


class Reloaded(msgspec.Struct, frozen=True):
    """The configuration was read again; `error` is why it was not taken, "" if it was. `teams` are those in force."""

    error: str = ""
    teams: frozenset[str] = frozenset()


class Notified(msgspec.Struct, frozen=True):
    """Any other message for the operator: a warning at start, a store that was moved aside."""

    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"


Event = (
    Decided
    | Finished
    | Answered
    | Switched
    | Measured
    | Spilled
    | QueueChanged
    | Rejected
    | ProbeLost
    | ProbeBack
    | UpstreamDown
    | UpstreamUp
    | UpstreamGone
    | LoopLagged
    | TaskFailed
    | Reloaded
    | Notified
)
