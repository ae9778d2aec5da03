"""Events, and the hooks that log, count and keep them. No hook sees a prompt.

`events` are the facts, `hub` passes each one to every hook, `log` and `records` (of Python's logging) make JSON lines,
`lines` writes them, `metrics` and `gauges` feed Prometheus, `traces` has spans made (`spans`) and sent (`otlp`) by the
names of `semconv`, `recent` keeps the last decisions, `lag` measures the event loop, `supervisor` keeps long-lived work
alive, `steady` is a clock that does not jump, `usage` sums up what teams use, `audit` and `rotated` write a line per
request to a file.
"""

from router.telemetry.audit import AuditHook
from router.telemetry.events import (
    Answered,
    Decided,
    Event,
    Finished,
    LoopLagged,
    Measured,
    Notified,
    ProbeBack,
    ProbeLost,
    QueueChanged,
    Rejected,
    Reloaded,
    Spilled,
    Switched,
    TaskFailed,
    TraceContext,
    UpstreamDown,
    UpstreamGone,
    UpstreamUp,
)
from router.telemetry.gauges import CardReading, Gauges, ResidentReading, SlotsReading
from router.telemetry.hub import Hook, Telemetry
from router.telemetry.lag import watch_loop_lag
from router.telemetry.lines import LineWriter
from router.telemetry.log import LogHook
from router.telemetry.metrics import MetricsHook
from router.telemetry.recent import RecentDecisions
from router.telemetry.records import RecordLines
from router.telemetry.rotated import RotatedFile
from router.telemetry.steady import SteadyTime
from router.telemetry.supervisor import Supervisor
from router.telemetry.traces import TraceHook
from router.telemetry.usage import UsageHook, UsageWriter

__all__ = [
    "Answered",
    "AuditHook",
    "CardReading",
    "Decided",
    "Event",
    "Finished",
    "Gauges",
    "Hook",
    "LineWriter",
    "LogHook",
    "LoopLagged",
    "Measured",
    "MetricsHook",
    "Notified",
    "ProbeBack",
    "ProbeLost",
    "QueueChanged",
    "RecentDecisions",
    "RecordLines",
    "Rejected",
    "Reloaded",
    "ResidentReading",
    "RotatedFile",
    "SlotsReading",
    "Spilled",
    "SteadyTime",
    "Supervisor",
    "Switched",
    "TaskFailed",
    "Telemetry",
    "TraceContext",
    "TraceHook",
    "UpstreamDown",
    "UpstreamGone",
    "UpstreamUp",
    "UsageHook",
    "UsageWriter",
    "watch_loop_lag",
]
