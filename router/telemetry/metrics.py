"""Prometheus metrics: OpenTelemetry's GenAI names for requests, `ollama_router_…` for the router's own.

Label values are bounded: a model name that is neither configured nor installed becomes `other`, and so does every value
beyond a fixed number. Label children are looked up once per raw value, and requests are counted in batches.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from router import __version__
from router.telemetry.events import (
    Decided,
    Event,
    Finished,
    LoopLagged,
    Measured,
    Rejected,
    Reloaded,
    Spilled,
    Switched,
    TaskFailed,
    UpstreamDown,
    UpstreamGone,
    UpstreamUp,
)
from router.telemetry.gauges import GaugeMetrics, Gauges
from router.telemetry.histograms import Histogram, HistogramSeries
from router.telemetry.labels import OTHER, Bounded, keep_series
from router.telemetry.semconv import operation_of

COUNT_BATCH = 512
"""Batch size: per-request events collected before they are counted. A scrape counts the rest first."""

_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68)
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120, 300)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKENS = tuple(4.0**power for power in range(14))
_QUEUE = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_LAG = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)
_ERROR = (-0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5)
_MODELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")


@dataclass(frozen=True, slots=True)
class Series:
    """The histograms of one operation on one pair of requested and served model."""

    duration: HistogramSeries
    ttft: HistogramSeries
    per_token: HistogramSeries
    tokens_in: HistogramSeries
    tokens_out: HistogramSeries

    def observe_all(self, events: list[Finished]) -> None:
        """Count these requests; unknown values are skipped."""
        self.duration.observe_all([e.duration_s for e in events if e.duration_s is not None])
        self.ttft.observe_all([e.ttft_s for e in events if e.ttft_s is not None])
        self.per_token.observe_all([each for e in events if (each := _per_token_s(e)) is not None])
        self.tokens_in.observe_all([e.tokens_in for e in events if e.tokens_in is not None])
        self.tokens_out.observe_all([e.tokens_out for e in events if e.tokens_out is not None])


class MetricsHook:
    """Counts events in a registry of its own. `is_known_model` decides which names may become labels."""

    def __init__(
        self, version: str = __version__, *, is_known_model: Callable[[str], bool] = lambda _name: True
    ) -> None:
        # `_created` series would double the exposition, and no dashboard of ours reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._model = Bounded(200, is_known_model)
        self._word, self._team, self._backend = Bounded(100), Bounded(100), Bounded(100)
        self._decided_by: dict[tuple[str, ...], Counter] = {}
        self._series_by: dict[tuple[str, ...], Series] = {}
        self._read: Callable[[], Gauges] = Gauges
        self._decided: list[Decided] = []  # not counted yet, as those in `_finished`
        self._finished: list[Finished] = []
        self._make()
        self._gauges = GaugeMetrics(self.registry, model=self._model, team=self._team)
        self._gauge("ollama_router_build_info", "Version of the router.", ("version",)).labels(version).set(1)

    def watch(self, read: Callable[[], Gauges]) -> None:
        """Read the gauges by calling `read` at each scrape."""
        self._read = read

    def render(self) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        self._count()
        self._gauges.set(self._read())
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def on(self, event: Event) -> None:
        if isinstance(event, Decided):
            self.on_requests((event,), ())
        elif isinstance(event, Finished):
            self.on_requests((), (event,))
        else:
            self._on_other(event)

    def _on_other(self, event: Event) -> None:
        match event:
            case Switched() if event.phase != "started":
                self._switches.labels(event.backend, event.phase).inc()
                if event.duration_s is not None:
                    self._switch_time.labels(event.backend).observe(event.duration_s)
            case Rejected():
                self._rejected.labels(self._team(event.team), self._word(event.reason)).inc()
            case Spilled():
                self._spills.labels(event.backend, self._model(event.model)).inc()
            case Measured() if event.measured_bytes > 0 and event.predicted_bytes > 0:
                self._error.labels(event.backend).observe(event.predicted_bytes / event.measured_bytes - 1)
            case UpstreamUp() | UpstreamDown() | UpstreamGone():
                self._show_backend(event)
            case Reloaded():
                self._reloaded.set(0 if event.error else 1)
                if event.teams:
                    self._keep_teams({*event.teams, OTHER, ""})
            case TaskFailed():
                self._restarted.labels(event.backend, event.task).inc()
            case LoopLagged():
                self._lag.labels().observe(event.lag_s)
            case _:
                pass

    def on_requests(self, decided: Sequence[Decided], finished: Sequence[Finished]) -> None:
        """Collect a batch of requests' events; they are counted when there are `COUNT_BATCH` of a kind."""
        self._decided.extend(decided)
        self._finished.extend(finished)
        if max(len(self._decided), len(self._finished)) >= COUNT_BATCH:
            self._count()

    def _keep_teams(self, names: set[str]) -> None:
        """Remove the series of all other teams: they are no more, and would keep new ones from having their own."""
        self._count()
        for counter in (self._decisions, self._served, self._rejected):
            keep_series(counter, "team", names)
        self._decided_by = {key: child for key, child in self._decided_by.items() if key[0] in names}
        self._team.keep_only(names)

    def _show_backend(self, event: UpstreamUp | UpstreamDown | UpstreamGone) -> None:
        """Show whether a backend answers; remove the series of a node that is no more, which makes room for others."""
        if not isinstance(event, UpstreamGone):
            if (name := self._backend(event.backend)) != OTHER:  # of many together nothing could be said
                self._up.labels(name).set(isinstance(event, UpstreamUp))
            return
        self._count()
        for metric in (self._up, self._queue):
            with suppress(KeyError):
                metric.remove(event.backend)
        self._backend.forget(event.backend)

    def _make(self) -> None:
        prefix = "ollama_router_"
        self._decisions = self._counter(
            f"{prefix}decisions", "Decisions on requests.", ("team", "chain", "variant", "reason")
        )
        self._fallbacks = self._counter(
            f"{prefix}fallbacks", "Requests served by another variant than the requested one.", ("from", "to", "reason")
        )
        self._below_best = self._counter(
            f"{prefix}below_best", "Requests served by a smaller variant although a bigger one would fit.", ("reason",)
        )
        self._spills = self._counter(
            f"{prefix}spills", "Loads that did not end up fully on the GPU.", ("backend", "model")
        )
        self._served = self._counter(
            f"{prefix}team_served_seconds", "Seconds of runners that requests of a team have used.", ("team",)
        )
        self._rejected = self._counter(
            f"{prefix}rejected", "Requests above a limit of their own team.", ("team", "reason")
        )
        self._gone = self._counter(
            f"{prefix}client_disconnects", "Clients that left before the end of the answer.", ("phase",)
        )
        self._switches = self._counter(f"{prefix}switches", "Switches of the loaded models.", ("backend", "result"))
        self._restarted = self._counter(
            f"{prefix}task_restarts", "Faults of work in the background, which then began again.", ("backend", "task")
        )
        self._up = self._gauge(f"{prefix}backend_up", "1 if the backend answers, else 0.", ("backend",))
        self._reloaded = self._gauge(
            f"{prefix}config_last_reload_successful", "1 if the last reload of the configuration was taken, else 0."
        )
        self._reloaded.set(1)
        self._queue = self._histogram(
            f"{prefix}queue_wait_seconds", "Time a request waited before it was sent.", _QUEUE, ("backend",)
        )
        self._switch_time = self._histogram(
            f"{prefix}switch_duration_seconds", "Duration of a switch.", _DURATION, ("backend",)
        )
        self._error = self._histogram(
            f"{prefix}vram_estimate_error_ratio", "Predicted memory / measured memory - 1.", _ERROR, ("backend",)
        )
        self._lag = self._histogram(f"{prefix}event_loop_lag_seconds", "Delay of timers of the event loop.", _LAG)
        server = "gen_ai_server_"
        self._duration = self._histogram(
            f"{server}request_duration_seconds", "Duration of a request.", _DURATION, (*_MODELS, "error_type")
        )
        self._ttft = self._histogram(f"{server}time_to_first_token_seconds", "Time to the first token.", _TTFT, _MODELS)
        self._per_token = self._histogram(
            f"{server}time_per_output_token_seconds", "Time per token after the first.", _PER_TOKEN, _MODELS
        )
        self._tokens = self._histogram(
            "gen_ai_client_token_usage", "Tokens of a request.", _TOKENS, (*_MODELS, "gen_ai_token_type")
        )

    def _count(self) -> None:
        """Count the batch of requests: one by one would cost several times as much."""
        decided, finished, self._decided, self._finished = self._decided, self._finished, [], []
        for key, count in Tally(map(_decision_key, decided)).items():
            self._count_decided(key, count)
        groups: dict[tuple[str, str, str, str], list[Finished]] = {}
        for backend in {event.backend for event in finished}:
            self._queue.labels(self._backend(backend)).observe_all(
                [one.queue_s for one in finished if one.backend == backend]
            )
        served_s: dict[str, float] = {}
        for event in finished:
            if event.card_s:
                served_s[event.team] = served_s.get(event.team, 0.0) + event.card_s
            # A request without a phase was cancelled while its answer was sent, or before the first byte of it.
            if event.outcome == "client_gone":
                self._gone.labels(event.phase or ("stream" if event.sent_bytes else "before_answer")).inc()
            error = "" if event.status < 400 and event.outcome == "completed" else _error_type(event)
            groups.setdefault((event.operation, event.requested, event.variant, error), []).append(event)
        for ended_by, group in groups.items():
            series = self._series_by.get(ended_by)
            if series is None:
                series = self._series(group[0], ended_by[3])
                _remember(self._series_by, ended_by, series)
            series.observe_all(group)
        for team, seconds in served_s.items():
            self._served.labels(self._team(team)).inc(seconds)

    def _count_decided(self, key: tuple[str, ...], count: int) -> None:
        team, chain, requested, chosen, reason, outcome, below_best = key
        child = self._decided_by.get(key)
        if child is None:
            labels = (self._team(team), self._model(chain), self._model(chosen), self._word(reason))
            child = self._decisions.labels(*labels)
            _remember(self._decided_by, key, child)
        child.inc(count)
        if outcome == "fallback":
            self._fallbacks.labels(self._model(requested), self._model(chosen), self._word(reason)).inc(count)
        if below_best:
            self._below_best.labels(below_best).inc(count)

    def _series(self, event: Finished, error: str) -> Series:
        operation = operation_of(event.operation)
        labels = (operation, "ollama", self._model(event.requested), self._model(event.variant))
        return Series(
            self._duration.labels(*labels, error),
            self._ttft.labels(*labels),
            self._per_token.labels(*labels),
            self._tokens.labels(*labels, "input"),
            self._tokens.labels(*labels, "output"),
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, bounds=buckets, registry=self.registry)


def _remember(known: dict[tuple[str, ...], Any], key: tuple[str, ...], value: object) -> None:
    """Keep `value` unless `known` is full: raw values come from clients, and would grow it without bound."""
    if len(known) < 4096:
        known[key] = value


def _decision_key(event: Decided) -> tuple[str, ...]:
    reason, chain = event.cause or event.outcome, event.chain or event.requested
    return event.team, chain, event.requested, event.chosen, reason, event.outcome, event.below_best


def _per_token_s(event: Finished) -> float | None:
    """Return the seconds per token after the first, None if the answer holds no count or only one token."""
    if event.duration_s is None or event.ttft_s is None or event.tokens_out is None or event.tokens_out <= 1:
        return None
    return max(0.0, (event.duration_s - event.ttft_s) / (event.tokens_out - 1))


def _error_type(event: Finished) -> str:
    """Return OpenTelemetry's `error.type`: the HTTP status if it is an error, else the request's outcome."""
    return str(event.status) if event.status >= 400 else event.outcome
