"""Where each chain stands: served by its first variant or moved down to a smaller one, and how well returns lasted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.core.decision.upgrades import MOST_PATIENCE
from router.core.decision.verdict import Decision, Outcome

VAIN_S = 60.0
"""A return to the first variant was in vain if the chain had to move down again within this time."""


@dataclass(slots=True)
class _Standing:
    is_moved_down: bool = False
    returned_at_s: float | None = None
    patience: float = 1.0

    def move_down(self, now_s: float) -> None:
        if self.returned_at_s is not None:
            is_vain = now_s - self.returned_at_s < VAIN_S
            self.patience = min(MOST_PATIENCE, 2 * self.patience) if is_vain else 1.0
        self.is_moved_down, self.returned_at_s = True, None

    def move_up(self, now_s: float) -> None:
        self.is_moved_down, self.returned_at_s = False, now_s


_NEW = _Standing()


class Standings:
    """The standings of all chains, by name; `now` is the loop's time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._by_name: dict[str, _Standing] = {}

    def note_served(self, name: str, decision: Decision) -> None:
        """Note by which variant of chain `name` a request is served."""
        is_first, known = decision.outcome is Outcome.EXACT, self._by_name.get(name)
        if known is None:
            if is_first:
                return  # as all chains begin
            known = self._by_name[name] = _Standing()
        if is_first and known.is_moved_down:
            known.move_up(self._now())
        elif not is_first and not known.is_moved_down:
            known.move_down(self._now())

    def is_moved_down(self, name: str) -> bool:
        """Return True if the last request of chain `name` was served by a smaller variant than its first."""
        return self._by_name.get(name, _NEW).is_moved_down

    def patience(self, name: str) -> float:
        """Return how many times the cost of the switch memory must have been free before chain `name` returns."""
        return self._by_name.get(name, _NEW).patience
