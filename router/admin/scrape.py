"""The values of the metrics that are read at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

from router.backend.backend import Backend
from router.telemetry import CardReading, Gauges, ResidentReading, SlotsReading

MOST_TEAMS = 1024
"""Teams that are remembered to have waited, on all backends."""


class Scrape:
    """Reads all backends. `stores_up` returns which stores can be used, `lost` what is missing in usage and audit.

    `nodes` counts those of a front.
    """

    def __init__(
        self,
        backends: Collection[Backend],
        stores_up: Callable[[], dict[str, bool]],
        lost: Callable[[], tuple[int, int]],
        nodes: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self._backends = backends
        self._stores_up = stores_up
        self._lost = lost
        self._nodes = nodes
        self._teams: set[tuple[str, str]] = set()

    def gauges(self) -> Gauges:
        """Return the current values."""
        usage_lost, audit_lost = self._lost()
        return Gauges(
            inflight_requests={
                one.name: sum(tracked.in_flight for tracked in one.world.residents.values()) for one in self._backends
            },
            waiting=self._waiting(),
            cards=tuple(card for one in self._backends for card in _cards(one)),
            residents=tuple(
                ResidentReading(one.name, tracked.name, str(card), held)
                for one in self._backends
                for tracked in one.world.residents.values()
                for card, held in tracked.held_bytes.items()
            ),
            stores_up=self._stores_up(),
            nodes=self._nodes(),
            usage_lost=usage_lost,
            audit_lost=audit_lost,
            lags_s={(one.name, row.team): row.lag_s for one in self._backends for row in one.line.shares.rows()},
            slots=tuple(reading for one in self._backends for reading in _slots(one)),
        )

    def _waiting(self) -> dict[tuple[str, str], int]:
        """Return how many requests of each team wait; 0 for a team of which some have waited before."""
        counts = Counter((one.name, team) for one in self._backends for _, _, team in one.line.waiting_for())
        self._teams.update(counts)
        if len(self._teams) > MOST_TEAMS:  # fronts name any number of teams in the course of time
            self._teams = set(counts)
        named = {name for name, _ in self._teams}
        unasked = {(one.name, "") for one in self._backends if one.name not in named}
        return {key: counts[key] for key in self._teams | unasked}


def _slots(backend: Backend) -> Iterator[SlotsReading]:
    for tracked in backend.world.residents.values():
        used, free = tracked.in_flight, backend.line.slots.room(tracked) - tracked.in_flight
        yield SlotsReading(backend.name, tracked.name, "used", used)
        yield SlotsReading(backend.name, tracked.name, "free", max(0, free))


def _cards(backend: Backend) -> Iterator[CardReading]:
    name, reserved = backend.name, backend.reserved_bytes()
    for gpu in backend.cards.gpus or ():
        yield CardReading(name, str(gpu.index), gpu.uuid, gpu.total_bytes, gpu.free_bytes, reserved.get(gpu.index, 0))
