"""Events reach the log, the metrics and the list of recent decisions."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from router.core.decision.chain import Variant
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from router.telemetry import (
    Answered,
    CardReading,
    Decided,
    Event,
    Finished,
    Gauges,
    LogHook,
    LoopLagged,
    Measured,
    MetricsHook,
    Notified,
    ProbeBack,
    ProbeLost,
    QueueChanged,
    RecentDecisions,
    Rejected,
    ResidentReading,
    SlotsReading,
    Spilled,
    Switched,
    TaskFailed,
    Telemetry,
    UpstreamDown,
    UpstreamGone,
    UpstreamUp,
    watch_loop_lag,
)
from router.telemetry.hub import MAX_BATCH

DECISION = Decision(
    Outcome.FALLBACK,
    Verdict(Variant("small"), VerdictKind.FITS, 8192, 5, 9),
    (
        Verdict(Variant("big"), VerdictKind.TOO_BIG, 8192, 50, 9, "GPU 0 lacks 41"),
        Verdict(Variant("small"), VerdictKind.FITS),
    ),
)
DECIDED = Decided(
    "r1",
    "default",
    "big",
    "small",
    "fallback: big too big",
    "fallback",
    chain="big",
    cause="too_big",
    decision=DECISION,
    below_best="lately",
)
FINISHED = Finished(
    "r1", "default", "/api/chat", 200, "big", "small", "completed", queue_s=0.25, sent_bytes=1234, duration_s=2.5,
    ttft_s=0.5, tokens_in=12, tokens_out=41, operation="chat", reason="fallback: big too big", card_s=1.5,
)  # fmt: skip
FULL = Gauges(
    {"local": 1},
    {("local", "default"): 1},
    (CardReading("local", "0", "GPU-0", 9, 5),),
    (ResidentReading("local", "small", "0", 4),),
    {"usage": True},
    lags_s={("local", "default"): 2.5},
    slots=(SlotsReading("local", "small", "used", 2), SlotsReading("local", "small", "free", 0)),
    nodes={"found": 3, "usable": 2},
)
REFUSED = Decided("r2", "default", "big", "", "nothing fits", "rejected")
EVERYTHING: tuple[Event, ...] = (
    DECIDED,
    FINISHED,
    REFUSED,
    Finished("r3", "default", "/api/chat", 499, "big", "small", "client_gone"),
    QueueChanged(3),
    Rejected("coding", "requests_per_minute"),
    Switched("started", "small"),
    Switched("finished", "small", ("big",), 4.5),
    Switched("failed", "big", (), 1.0, "out of memory"),
    Spilled("big", 100, 60),
    Measured("small", 102, 100),
    ProbeLost("nvml", "GPU is lost"),
    ProbeBack("nvml"),
    UpstreamDown("connection refused"),
    UpstreamUp("0.33.0"),
    UpstreamGone("gone"),
    LoopLagged(0.002),
    TaskFailed("world", "ValueError('x') at world.py:1", backend="local"),
    TaskFailed("world", "ValueError('x') at world.py:1", is_repeated=True, backend="local"),
    Notified("starting", "warning"),
    Answered("r4", "POST", "/api/pull", 403, "refused", team="default"),
)


def logged(*events: Event, level: str = "info") -> list[dict[str, Any]]:
    lines: list[bytes] = []
    hook = LogHook(level, sink=lines.append, unix_now=lambda: 1_800_000_000.25)
    for event in events:
        hook.on(event)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    return [json.loads(line) for line in lines]


def exposed(*events: Event, hook: MetricsHook | None = None) -> str:
    hook = hook or MetricsHook("0.1.0")
    for event in events:
        hook.on(event)
    body, content_type = hook.render()
    assert content_type.startswith("text/plain")
    return body.decode()


def test_a_request_is_one_log_line_with_all_fields() -> None:
    """The fields that operators need, with times in milliseconds."""
    assert logged(FINISHED) == [
        {
            "ts": "2027-01-15T08:00:00.250+00:00", "level": "info", "msg": "request", "request_id": "r1",
            "team": "default", "method": "POST", "route": "/api/chat", "status": 200, "requested": "big",
            "variant": "small", "backend": "local", "reason": "fallback: big too big", "queue_ms": 250.0,
            "ttft_ms": 500.0, "duration_ms": 2500.0, "tokens_in": 12, "tokens_out": 41, "bytes": 1234,
            "outcome": "completed", "card_ms": 1500.0,
        }
    ]  # fmt: skip


def test_events_are_logged_at_their_levels() -> None:
    """Faults are warnings or errors, normal events are info, decisions on served requests only debug."""
    lines = [(line["level"], line["msg"]) for line in logged(*EVERYTHING)]
    assert lines == [
        ("info", "request"),
        ("info", "decided"),
        ("info", "request"),
        ("info", "switch started"),
        ("info", "switch finished"),
        ("warning", "switch failed"),
        ("warning", "model spilled after its load"),
        ("warning", "free memory cannot be read"),
        ("info", "free memory can be read again"),
        ("error", "Ollama does not answer"),
        ("info", "Ollama answers"),
        ("info", "no node has this name any more"),
        ("error", "world failed and is begun again"),
        ("warning", "starting"),
        ("info", "request"),
    ]
    assert len(logged(*EVERYTHING, level="debug")) == len(lines) + 3
    assert [line["level"] for line in logged(*EVERYTHING, level="error")] == ["error"] * 2


def test_the_log_goes_to_stderr_and_survives_its_closing() -> None:
    """If standard error is closed, a line is lost, and nothing else happens."""
    code = (
        "import os; from router.telemetry import LineWriter, LogHook, Notified\n"
        "writer = LineWriter(); hook = LogHook(sink=writer); hook.on(Notified('first'))\n"
        "while writer._size: pass\n"
        "os.close(2); hook.on(Notified('second')); writer.close(9); print('alive', writer.dropped)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert json.loads(done.stderr)["msg"] == "first"
    assert done.stdout == "alive 1\n"


NAMES = (
    "ollama_router_decisions_total",
    "ollama_router_fallbacks_total",
    "ollama_router_below_best_total",
    "ollama_router_queue_depth",
    "ollama_router_slots",
    "ollama_router_team_lag_seconds",
    "ollama_router_queue_wait_seconds",
    "ollama_router_inflight_requests",
    "ollama_router_backend_up",
    "ollama_router_vram_free_bytes",
    "ollama_router_vram_reserved_bytes",
    "ollama_router_vram_total_bytes",
    "ollama_router_resident_bytes",
    "ollama_router_store_up",
    "ollama_router_usage_lost_total",
    "ollama_router_audit_lost_total",
    "ollama_router_team_served_seconds_total",
    "ollama_router_switches_total",
    "ollama_router_switch_duration_seconds",
    "ollama_router_vram_estimate_error_ratio",
    "ollama_router_spills_total",
    "ollama_router_rejected_total",
    "ollama_router_client_disconnects_total",
    "ollama_router_build_info",
    "ollama_router_event_loop_lag_seconds",
    "gen_ai_server_request_duration_seconds",
    "gen_ai_server_time_to_first_token_seconds",
    "gen_ai_server_time_per_output_token_seconds",
    "gen_ai_client_token_usage",
)


@pytest.mark.parametrize("name", NAMES)
def test_each_metric_has_a_sample(name: str) -> None:
    """After one event of each kind."""
    hook = MetricsHook("0.1.0")
    hook.watch(lambda: FULL)
    samples = [line for line in exposed(*EVERYTHING, hook=hook).splitlines() if not line.startswith("#")]
    assert any(line.split("{")[0].split(" ")[0].startswith(name) for line in samples)


def test_a_fallback_is_counted_with_both_models_and_its_reason() -> None:
    """Requested model, served model and reason are labels; the reason is one word, not a sentence with names."""
    text = exposed(DECIDED, FINISHED)
    labels = 'chain="big",reason="too_big",team="default",variant="small"'
    assert f"ollama_router_decisions_total{{{labels}}} 1.0" in text
    assert 'ollama_router_fallbacks_total{from="big",reason="too_big",to="small"} 1.0' in text
    assert 'ollama_router_below_best_total{reason="lately"} 1.0' in text
    assert 'gen_ai_request_model="big",gen_ai_response_model="small"' in text
    assert "_created" not in text


def test_time_per_token_excludes_the_first_token() -> None:
    """40 tokens in the 2 s after the first take 0.05 s each."""
    text = exposed(FINISHED)
    (line,) = [line for line in text.splitlines() if line.startswith("gen_ai_server_time_per_output_token_seconds_sum")]
    assert float(line.rpartition(" ")[2]) == pytest.approx(0.05)


def test_gauges_are_read_at_each_scrape() -> None:
    """Free memory is the current value; a card that has gone has no sample any more."""
    cards = [CardReading("local", "0", "GPU-a", 9, 5), CardReading("local", "1", "GPU-b", 9, 7)]
    hook = MetricsHook()
    hook.watch(lambda: Gauges({"local": 2}, cards=tuple(cards)))
    assert 'ollama_router_vram_free_bytes{backend="local",gpu="1",uuid="GPU-b"} 7.0' in exposed(hook=hook)
    del cards[1]
    text = exposed(hook=hook)
    assert 'gpu="1"' not in text
    assert 'ollama_router_inflight_requests{backend="local"} 2.0' in text


def test_series_of_two_backends_do_not_collide() -> None:
    """Each metric that describes a backend has its name, and cards have their UUID beside the index."""
    hook = MetricsHook()
    both = "near", "far"
    hook.watch(
        lambda: Gauges(
            dict.fromkeys(both, 1),
            {(name, "coding"): 2 for name in both},
            tuple(CardReading(name, "0", f"GPU-{name}", 9, 5, 3) for name in both),
            tuple(ResidentReading(name, "big", "0", 4) for name in both),
        )
    )
    for backend in both:
        for event in (Switched("finished", "small", (), 4.5), Spilled("big", 100, 60), Measured("small", 102, 100)):
            hook.on(msgspec.structs.replace(event, backend=backend))
        hook.on(msgspec.structs.replace(FINISHED, backend=backend))
        hook.on(UpstreamUp("0.33.0", backend))
    samples = [line.rpartition(" ") for line in exposed(hook=hook).splitlines() if 'backend="near"' in line]
    far = [line.rpartition(" ") for line in exposed(hook=hook).splitlines() if 'backend="far"' in line]
    assert [(name.replace("near", "far"), value) for name, _, value in samples] == [(n, v) for n, _, v in far]
    assert {re.split("[{]", name)[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name, *_ in
            samples} == {
        "ollama_router_backend_up", "ollama_router_inflight_requests", "ollama_router_queue_depth",
        "ollama_router_queue_wait_seconds", "ollama_router_resident_bytes", "ollama_router_spills_total",
        "ollama_router_switch_duration_seconds", "ollama_router_switches_total",
        "ollama_router_vram_estimate_error_ratio", "ollama_router_vram_free_bytes",
        "ollama_router_vram_reserved_bytes", "ollama_router_vram_total_bytes",
    }  # fmt: skip


def test_a_node_that_is_gone_has_no_series_and_leaves_room_for_others() -> None:
    """However many come and go: each new one has a series of its own, and an alert on `backend_up` ends."""
    hook = MetricsHook()
    for number in range(300):
        hook.on(UpstreamUp("0.33.0", f"pod-{number}"))
        hook.on_requests([], [msgspec.structs.replace(FINISHED, backend=f"pod-{number}")])
        if number < 299:
            hook.on(UpstreamGone(f"pod-{number}"))
    hook.on(UpstreamGone("never heard of"))
    names = set(re.findall('backend="([^"]*)"', exposed(hook=hook)))
    assert names == {"pod-299"}


def test_nodes_beyond_the_bound_have_no_common_value() -> None:
    """One that answers would hide that another one does not."""
    hook = MetricsHook()
    for number in range(101):
        hook.on(UpstreamUp("0.33.0", f"node-{number}"))
    rows = [line for line in exposed(hook=hook).splitlines() if line.startswith("ollama_router_backend_up{")]
    assert len(rows) == 100
    assert not any("other" in row for row in rows)


def test_what_is_lost_is_counted_from_the_start_of_the_router() -> None:
    """The counters follow the totals that the router keeps."""
    hook, lost = MetricsHook(), [3, 1]
    hook.watch(lambda: Gauges(usage_lost=lost[0], audit_lost=lost[1]))
    assert "ollama_router_usage_lost_total 3.0" in exposed(hook=hook)
    lost[0] = 5
    text = exposed(hook=hook)
    assert "ollama_router_usage_lost_total 5.0" in text
    assert "ollama_router_audit_lost_total 1.0" in text


def test_what_a_team_has_used_of_the_runners_is_counted() -> None:
    """In seconds: each request adds its share."""
    text = exposed(Finished("r4", "coding", "/api/chat", 200, "big", "big", "completed", card_s=1.5))
    assert 'ollama_router_team_served_seconds_total{team="coding"} 1.5' in text


def test_the_parts_of_a_backend_name_it_in_their_events() -> None:
    """Only where an event has no name of a backend."""
    seen: list[Event] = []

    class Recorder:
        def on(self, event: Event) -> None:
            seen.append(event)

    part = Telemetry([Recorder()]).of("near")
    for event in (QueueChanged(1), UpstreamUp("0.33.0", "far"), Notified("careful", "warning"), DECIDED):
        part.emit(event)
    assert seen == [QueueChanged(1, "near"), UpstreamUp("0.33.0", "far"), Notified("careful", "warning"), DECIDED]


def test_names_that_clients_invent_do_not_become_labels() -> None:
    """10,000 unknown models and teams leave a small exposition."""
    hook = MetricsHook(is_known_model=lambda name: name == "big")
    for number in range(10_000):
        hook.on(Finished("", f"t{number}", "/api/chat", 404, f"m{number}", f"m{number}", "completed", duration_s=0.1))
        hook.on(Decided("", f"t{number}", f"m{number}", f"m{number}", "", "exact"))
    text = exposed(hook=hook)
    assert 'gen_ai_request_model="other"' in text
    assert 'gen_ai_request_model="m1"' not in text
    assert len(text.splitlines()) < 400
    assert max(len(hook._series_by), len(hook._decided_by)) <= 4096


def test_a_recent_decision_has_the_end_of_its_request() -> None:
    """There is one row per request, newest first, with the verdicts' bytes and how it ended."""
    recent = RecentDecisions(unix_now=lambda: 5.0)
    for event in EVERYTHING:
        recent.on(event)
    rows = recent.rows()
    assert [row["kind"] for row in rows] == ["spill", "switch failed", "switch finished", "request", "request"]
    first = rows[-1]
    assert (first["chosen"], first["status"], first["ended"], first["at"]) == ("small", 200, "completed", 5.0)
    assert first["verdicts"][0] == {
        "model": "big", "num_ctx": 8192, "verdict": "too big", "need_bytes": 50, "have_bytes": 9,
        "detail": "GPU 0 lacks 41",
    }  # fmt: skip
    assert "verdicts" not in rows[-2]
    json.dumps(rows)


def test_recent_decisions_are_bounded() -> None:
    """The oldest are discarded."""
    recent = RecentDecisions(3)
    for number in range(10):
        recent.on(Decided(f"r{number}", "", "a", "a", "", "exact"))
    recent.on(Finished("r0", "", "", 200, "a", "a", "completed"))
    assert [row["request_id"] for row in recent.rows()] == ["r9", "r8", "r7"]
    assert [row["request_id"] for row in recent.rows(2)] == ["r9", "r8"]


def test_a_hook_that_raises_is_counted_and_ignored() -> None:
    """The following hooks are called, and the emitter sees no exception."""

    class Broken:
        def on(self, _event: Event) -> None:
            raise RuntimeError("broken")

    recent = RecentDecisions()
    telemetry = Telemetry([Broken(), recent])
    telemetry.emit(DECIDED)
    assert (telemetry.failures, len(recent.rows())) == (1, 1)


async def test_loop_lag_is_measured() -> None:
    """An event reports how late a timer ran."""
    first: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    class Seen:
        def on(self, event: Event) -> None:
            if not first.done():
                first.set_result(event)

    task = asyncio.create_task(watch_loop_lag(Telemetry([Seen()]), every_s=0.001))
    event = await first
    task.cancel()
    assert isinstance(event, LoopLagged)
    assert event.lag_s >= 0


def test_events_of_requests_are_passed_on_in_batches_and_in_order() -> None:
    """A batch ends with the timer, at its maximum size, or with any other event, which follows it."""
    seen: list[str] = []

    class Recorder:
        def on(self, event: Event) -> None:
            seen.append(getattr(event, "request_id", None) or type(event).__name__)

    timers: list[Callable[[], None]] = []
    telemetry = Telemetry([Recorder()], later=lambda _, call: timers.append(call))
    telemetry.emit(Decided("r1", "", "a", "a", "", "exact"))
    telemetry.emit(Finished("r1", "", "", 200, "a", "a", "completed"))
    assert (seen, len(timers)) == ([], 1)
    telemetry.emit(Notified("careful", level="warning"))
    assert seen == ["r1", "r1", "Notified"]
    telemetry.emit(Decided("r2", "", "a", "a", "", "exact"))
    timers[-1]()
    assert seen[-1] == "r2"
    for number in range(MAX_BATCH):
        telemetry.emit(Decided(f"s{number}", "", "a", "a", "", "exact"))
    assert len(seen) == 4 + MAX_BATCH


def test_the_lines_of_a_batch_of_requests_are_one_write_and_stay_before_a_later_warning() -> None:
    written: list[bytes] = []
    timers: list[Callable[[], None]] = []
    hook = LogHook(sink=written.append, unix_now=lambda: 1.0)
    telemetry = Telemetry([hook], later=lambda _, call: timers.append(call))
    for number in range(3):
        telemetry.emit(Finished(f"r{number}", "", "", 200, "a", "a", "completed"))
    assert written == []
    telemetry.emit(Notified("careful", level="warning"))
    assert [line.count(b"\n") for line in written] == [3, 1]
