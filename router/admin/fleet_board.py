"""The data of the dashboard where there are several backends: that of each, put together as if they were one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router.admin.board import Board
from router.admin.fleet import FleetInspector, answering
from router.admin.inspector import Inspector
from router.admin.timeline import Timeline
from router.admin.totals import Totals
from router.routing.fleet.assembled import Routes
from router.telemetry import SteadyTime

Numbers = dict[tuple[str, int], int]


def board_of(
    routes: Routes, inspector: Inspector, totals: Totals, timeline: Timeline, unix_now: Callable[[], float]
) -> Board:
    """Return what builds the data for a router with these routes."""
    if isinstance(inspector, FleetInspector):
        return FleetBoard(routes, inspector, totals, timeline, unix_now)
    return Board(routes.places[0].backend, inspector, totals, timeline, unix_now)


class FleetBoard(Board):
    """Builds the data of several backends. Cards are numbered through, and named after their backends."""

    def __init__(
        self,
        routes: Routes,
        inspector: FleetInspector,
        totals: Totals,
        timeline: Timeline,
        unix_now: Callable[[], float],
    ) -> None:
        super().__init__(routes.places[0].backend, inspector, totals, timeline, unix_now)
        self._backends = [place.backend for place in routes.places]
        self._all_cards = timeline
        time = SteadyTime(routes.places[0].backend.now, unix_now)
        self._whole = inspector
        self._boards = {
            backend.name: Board(backend, inspector.of(backend.name), totals, Timeline(time), unix_now)
            for backend in self._backends
        }

    def _numbers(self) -> Numbers:
        """Return the number of each card by its backend and its index there."""
        found = ((one.name, gpu.index) for one in self._backends for gpu in one.cards.gpus or ())
        return {key: number for number, key in enumerate(found)}

    def observe(self) -> None:
        """Let the timeline note what is loaded now."""
        numbers = self._numbers()
        self._all_cards.observe(
            (number, tracked.name)
            for one in self._backends
            for tracked in one.world.residents.values()
            for card in tracked.held_bytes
            if (number := numbers.get((one.name, card))) is not None
        )

    def data(self) -> dict[str, Any]:
        """Return everything that the dashboard shows, except the decisions."""
        self.observe()
        numbers, (is_ready, details) = self._numbers(), self._whole.ready()
        parts = {name: board.data() for name, board in self._boards.items()}
        first = next(iter(parts.values()))
        cards = [_card(name, card, numbers) for name, part in parts.items() for card in part["cards"] or ()]
        loading = [_placed(name, part["loading"], numbers) for name, part in parts.items() if part["loading"]]
        queue = sorted((row for part in parts.values() for row in part["queue"]), key=lambda row: row["since"])
        return {
            **first,
            "ready": is_ready,
            "draining": details["draining"],
            "memory": details.get("memory", ""),
            "ollama": self._whole.ollama(),
            "cards": cards if any(part["cards"] is not None for part in parts.values()) else None,
            "models": [
                _placed(name, row, numbers) for name, part in answering(parts).items() for row in part["models"]
            ],
            "loading": loading[0] if loading else None,
            "queue": [{**row, "position": position} for position, row in enumerate(queue, 1)],
            "timeline": self._all_cards.as_data(),
            "barred": [{**row, "backend": name} for name, part in parts.items() for row in part["barred"]],
            "notes": self._whole.notes(),
            "installed": sorted({name for part in parts.values() for name in part["installed"]}),
        }


def _card(backend: str, card: dict[str, Any], numbers: Numbers) -> dict[str, Any]:
    return {
        **card,
        "index": numbers[backend, card["index"]],
        "name": f"{backend}: {card['name']}",
        "backend": backend,
    }


def _placed(backend: str, row: dict[str, Any], numbers: Numbers) -> dict[str, Any]:
    """Return a row with its cards by their numbers, and the name of its backend."""
    cards = [numbers[backend, card] for card in row["cards"] if (backend, card) in numbers]
    return {**row, "cards": cards, "backend": backend}
