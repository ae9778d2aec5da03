"""What is read at each scrape instead of being counted from events: cards, residents, queues, stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge

PREFIX = "ollama_router_"
_CARD = ("backend", "gpu", "uuid")


class CardReading(NamedTuple):
    """One card of a backend: its index and UUID, and its memory now. `reserved_bytes` is for the load under way."""

    backend: str
    gpu: str
    uuid: str
    total_bytes: int
    free_bytes: int
    reserved_bytes: int = 0


class ResidentReading(NamedTuple):
    """The memory that a loaded model holds on one card."""

    backend: str
    model: str
    gpu: str
    held_bytes: int


class SlotsReading(NamedTuple):
    """The slots of a loaded model that are `used` or `free`."""

    backend: str
    model: str
    state: str
    number: int


@dataclass(frozen=True, slots=True)
class Gauges:
    """The values of one scrape. `inflight_requests` by backend, `waiting` by backend and team, `stores_up` by store.

    `lags_s` is by backend and team: how much more it has had than the one that waits and has had least.
    `nodes` counts those of a front, found and usable. `usage_lost` and `audit_lost` count from the start of the router.
    """

    inflight_requests: Mapping[str, int] = field(default_factory=dict)
    waiting: Mapping[tuple[str, str], int] = field(default_factory=dict)
    cards: tuple[CardReading, ...] = ()
    residents: tuple[ResidentReading, ...] = ()
    stores_up: Mapping[str, bool] = field(default_factory=dict)
    usage_lost: int = 0
    audit_lost: int = 0
    lags_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    slots: tuple[SlotsReading, ...] = ()
    nodes: Mapping[str, int] = field(default_factory=dict)


class GaugeMetrics:
    """The metrics of `Gauges`. `model` and `team` bound the values of these labels."""

    def __init__(self, registry: CollectorRegistry, *, model: Callable[[str], str], team: Callable[[str], str]) -> None:
        self._registry, self._model, self._team = registry, model, team
        self._inflight = self._gauge("inflight_requests", "Requests being answered.", ("backend",))
        self._waiting = self._gauge("queue_depth", "Requests that wait for their model's turn.", ("backend", "team"))
        self._free = self._gauge("vram_free_bytes", "Free memory of a card.", _CARD)
        self._total = self._gauge("vram_total_bytes", "Memory of a card.", _CARD)
        self._reserved = self._gauge("vram_reserved_bytes", "Memory reserved for the load under way.", _CARD)
        self._resident = self._gauge(
            "resident_bytes", "Memory that a loaded model holds on a card.", ("backend", "model", "gpu")
        )
        self._lag = self._gauge(
            "team_lag_seconds", "Seconds of the cards that a team is ahead, by its share.", ("backend", "team")
        )
        self._slots = self._gauge("slots", "Requests that a loaded model takes.", ("backend", "model", "state"))
        self._stores = self._gauge("store_up", "1 if a store can be used, else 0.", ("store",))
        self._nodes = self._gauge("nodes", "Nodes of a front.", ("state",))
        self._lost_usage = Counter(
            f"{PREFIX}usage_lost",
            "Requests that are missing in the usage, which could not be written.",
            registry=registry,
        )
        self._lost_audit = Counter(
            f"{PREFIX}audit_lost", "Lines of the audit that could not be written.", registry=registry
        )
        self._lost = (0, 0)

    def set(self, gauges: Gauges) -> None:
        """Show these values; what is not among them any more has no sample."""
        for metric in self._cleared():
            metric.clear()
        for backend, count in gauges.inflight_requests.items():
            self._inflight.labels(backend).set(count)
        for (backend, team), count in gauges.waiting.items():
            self._waiting.labels(backend, self._team(team)).inc(count)
        for (backend, team), lag_s in gauges.lags_s.items():
            self._lag.labels(backend, self._team(team)).set(lag_s)
        for slots in gauges.slots:
            self._slots.labels(slots.backend, self._model(slots.model), slots.state).inc(slots.number)
        for card in gauges.cards:
            labels = card.backend, card.gpu, card.uuid
            self._free.labels(*labels).set(card.free_bytes)
            self._total.labels(*labels).set(card.total_bytes)
            self._reserved.labels(*labels).set(card.reserved_bytes)
        for one in gauges.residents:
            self._resident.labels(one.backend, self._model(one.model), one.gpu).inc(one.held_bytes)
        for store, is_up in gauges.stores_up.items():
            self._stores.labels(store).set(is_up)
        for how, count in gauges.nodes.items():
            self._nodes.labels(how).set(count)
        usage, audit = self._lost
        self._lost_usage.inc(max(0, gauges.usage_lost - usage))
        self._lost_audit.inc(max(0, gauges.audit_lost - audit))
        self._lost = gauges.usage_lost, gauges.audit_lost

    def _cleared(self) -> tuple[Gauge, ...]:
        """Return the metrics that are set anew by each scrape."""
        held = self._free, self._total, self._reserved, self._resident
        return (self._inflight, self._waiting, self._lag, self._slots, *held)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"{PREFIX}{name}", text, labels, registry=self._registry)
