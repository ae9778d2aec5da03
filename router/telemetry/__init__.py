"""Events, and the hooks that log, count and keep them. No hook sees a prompt.

`events` are the facts, `hub` passes each one to every hook, `log` writes JSON lines, `metrics` feeds Prometheus,
`recent` keeps the last decisions, `lag` measures the event loop.
"""

from router.telemetry.events import (
    Decided,
    Event,
    Finished,
    LoopLagged,
    Measured,
    Notified,
    ProbeBack,
    ProbeLost,
    QueueChanged,
    Spilled,
    Switched,
    UpstreamDown,
    UpstreamUp,
)
from router.telemetry.hub import Hook, Telemetry
from router.telemetry.lag import watch_loop_lag
from router.telemetry.log import LogHook, stderr_sink
from router.telemetry.metrics import Gauges, MetricsHook
from router.telemetry.recent import RecentDecisions

__all__ = [
    "Decided",
    "Event",
    "Finished",
    "Gauges",
    "Hook",
    "LogHook",
    "LoopLagged",
    "Measured",
    "MetricsHook",
    "Notified",
    "ProbeBack",
    "ProbeLost",
    "QueueChanged",
    "RecentDecisions",
    "Spilled",
    "Switched",
    "Telemetry",
    "UpstreamDown",
    "UpstreamUp",
    "stderr_sink",
    "watch_loop_lag",
]
