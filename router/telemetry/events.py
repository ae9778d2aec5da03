"""The events. Each carries facts as plain values; what is unknown is None or "", never 0.

They are msgspec's structs: two are built for every request, and a frozen dataclass of twenty fields costs ten times as
much to build.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from router.core.decision.verdict import Decision


class Decided(msgspec.Struct, frozen=True):
    """A request has its variant, or is refused (`chosen` is "").

    `outcome` is exact, fallback, passthrough or rejected. `cause` is the kind of the first verdict in one word, for
    metrics: `reason` may hold model names. `decision` is kept as it is and only rendered when somebody asks.
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

    def of(self, request_id: str, team: str) -> Decided:
        """The same decision for one request (by hand: `replace` costs five times as much)."""
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
        )


class Finished(msgspec.Struct, frozen=True):
    """The end of one request; exactly one for each that reached the dispatcher.

    `outcome` is completed, client_gone, upstream_error, shed, shutdown or failed. `duration_s` counts from the first
    byte of the request to the last of the answer, `ttft_s` to the first of the answer, `queue_s` is the part spent
    waiting.
    `phase` says where a client left: queued, before_answer, stream.
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


class Switched(msgspec.Struct, frozen=True):
    """A change of what is resident; `phase` is started, finished, or failed (then `error` says why)."""

    phase: str
    model: str
    evicted: tuple[str, ...] = ()
    duration_s: float | None = None
    error: str = ""


class Measured(msgspec.Struct, frozen=True):
    """A load was measured: what was foreseen, and what it took."""

    model: str
    predicted_bytes: int
    measured_bytes: int


class Spilled(msgspec.Struct, frozen=True):
    """A load did not end up wholly on the GPU; it is unloaded again and remembered."""

    model: str
    size_bytes: int
    size_vram_bytes: int


class QueueChanged(msgspec.Struct, frozen=True):
    """So many requests wait for their model's turn now."""

    depth: int


class ProbeLost(msgspec.Struct, frozen=True):
    """Free memory cannot be read any more."""

    probe: str
    error: str


class ProbeBack(msgspec.Struct, frozen=True):
    """Free memory can be read again."""

    probe: str


class UpstreamDown(msgspec.Struct, frozen=True):
    """The upstream does not answer any more."""

    error: str
    backend: str = "local"


class UpstreamUp(msgspec.Struct, frozen=True):
    """The upstream answers, for the first time or again."""

    version: str
    backend: str = "local"


class LoopLagged(msgspec.Struct, frozen=True):
    """The event loop ran a timer this late."""

    lag_s: float


class Noted(msgspec.Struct, frozen=True):
    """Anything else that an operator should read once: a warning at start, a store that was set aside."""

    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"


Event = (
    Decided
    | Finished
    | Switched
    | Measured
    | Spilled
    | QueueChanged
    | ProbeLost
    | ProbeBack
    | UpstreamDown
    | UpstreamUp
    | LoopLagged
    | Noted
)
