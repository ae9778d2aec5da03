"""The values of the metrics that are read at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from router.backend.backend import Backend
from router.telemetry import CardReading, Gauges, ResidentReading, SlotsReading


class Scrape:
    """Reads one backend. `stores_up` returns which stores can be used, `lost` what is missing in usage and audit."""

    def __init__(
        self, backend: Backend, stores_up: Callable[[], dict[str, bool]], lost: Callable[[], tuple[int, int]]
    ) -> None:
        self._backend = backend
        self._stores_up = stores_up
        self._lost = lost
        self._teams: set[str] = set()

    def gauges(self) -> Gauges:
        """Return the current values."""
        name, residents = self._backend.name, self._backend.world.residents
        usage_lost, audit_lost = self._lost()
        return Gauges(
            inflight_requests={name: sum(tracked.in_flight for tracked in residents.values())},
            waiting=self._waiting(),
            cards=self._cards(),
            residents=tuple(
                ResidentReading(name, tracked.name, str(card), held)
                for tracked in residents.values()
                for card, held in tracked.held_bytes.items()
            ),
            stores_up=self._stores_up(),
            usage_lost=usage_lost,
            audit_lost=audit_lost,
            lags_s={(name, row.team): row.lag_s for row in self._backend.line.shares.rows()},
            slots=tuple(self._slots()),
        )

    def _waiting(self) -> dict[tuple[str, str], int]:
        """Return how many requests of each team wait; 0 for a team of which some have waited before."""
        counts = Counter(team for _, _, team in self._backend.line.waiting_for())
        self._teams.update(counts)
        return {(self._backend.name, team): counts[team] for team in self._teams or {""}}

    def _slots(self) -> Iterator[SlotsReading]:
        line = self._backend.line
        for tracked in self._backend.world.residents.values():
            used, free = tracked.in_flight, line.slots.room(tracked) - tracked.in_flight
            yield SlotsReading(self._backend.name, tracked.name, "used", used)
            yield SlotsReading(self._backend.name, tracked.name, "free", max(0, free))

    def _cards(self) -> tuple[CardReading, ...]:
        name, reserved = self._backend.name, self._backend.reserved_bytes()
        return tuple(
            CardReading(name, str(gpu.index), gpu.uuid, gpu.total_bytes, gpu.free_bytes, reserved.get(gpu.index, 0))
            for gpu in self._backend.cards.gpus or ()
        )
