"""One card in discrete events: teams, each with a model; the card holds one at a time. By the rules F1 to F5.

It is the smallest machine on which the rules can be told from others: nothing of the router is in it but `Fairness`.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from router.core.teams.fairness import Charge, Fairness
from router.core.teams.meter import Meter, Part


@dataclass
class Team:
    """One team of the machine: `clients` ask again at once, `every_s` is the pause between requests of further ones."""

    name: str
    model: str
    weight: float = 1.0
    clients: int = 0
    every_s: float | None = None
    begins_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    served_s: float = 0.0
    tickets: deque[float] = field(default_factory=deque)


class OneCard:
    """The machine. `switch_s` is X, `service_s` draws the length of a request.

    A request is charged its length by the number of slots; `estimate_s` instead at first, and if it `is_metered` what a
    meter says in the end.
    """

    def __init__(
        self,
        teams: list[Team],
        *,
        window_s: float | None,
        switch_s: float = 8.0,
        slots: int = 1,
        seed: int = 1,
        service_s: Callable[[random.Random], float] = lambda rng: rng.uniform(1, 4),
        estimate_s: float | None = None,
        is_metered: bool = False,
    ) -> None:
        self.fairness = Fairness(window_s)
        self.teams = {team.name: team for team in teams}
        self.switch_s, self.slots = switch_s, slots
        self.now_s = self.switching_s = 0.0
        self.model = ""
        self.under_way = 0
        self.is_switching = False
        self.due: Team | None = None
        self.spreads_s: list[float] = []
        self.longest_charge_s = 0.0  # per weight
        self._service_s, self._estimate_s = service_s, estimate_s
        self._meter = Meter() if is_metered else None
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for team in teams:
            for _ in range(team.clients):
                self._at(team.begins_s, lambda team=team: self._ask(team))
            if team.every_s is not None:
                self._at(team.begins_s, lambda team=team: self._ask_regularly(team))

    def run(self, until_s: float) -> OneCard:
        """Play until `until_s`, and return the machine."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
            self._pump()
            self._look()
        return self

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), event))

    def _ask(self, team: Team) -> None:
        self.fairness.wait(team.name, team.weight)
        team.tickets.append(self.now_s)

    def _ask_regularly(self, team: Team) -> None:
        self._ask(team)
        assert team.every_s is not None
        self._at(self.now_s + team.every_s, lambda: self._ask_regularly(team))

    def _waiting(self) -> list[Team]:
        """Those that wait, the lowest level first, then the oldest."""
        oldest = sorted((team for team in self.teams.values() if team.tickets), key=lambda team: team.tickets[0])
        return [self.teams[name] for name in self.fairness.in_turn(team.name for team in oldest)]

    def _pump(self) -> None:
        while not self.is_switching:
            waiting = self._waiting()
            others = [team for team in waiting if team.model != self.model]
            able = self._able(waiting, [team.name for team in others])
            if able and self.under_way < self.slots:
                self._start(able[0])
            elif others and not able and not self.under_way:
                self._switch(others[0])  # F4
            else:
                return

    def _able(self, waiting: list[Team], rivals: list[str]) -> list[Team]:
        """Those that may enter what is loaded; first the one that it was loaded for, whatever that has cost it."""
        may = [team for team in waiting if team.model == self.model and self.fairness.may_enter(team.name, rivals)]
        due = [team for team in waiting if team is self.due and team.model == self.model]
        return [*due, *may]

    def _start(self, team: Team) -> None:
        self.due = None
        length_s = self._service_s(self._rng)
        actual_s = length_s / self.slots
        charge = self.fairness.start(team.name, team.weight, self._estimate_s or actual_s, has_waited=True)
        asked_s = team.tickets.popleft()
        self.longest_charge_s = max(self.longest_charge_s, actual_s / team.weight)
        self.under_way += 1
        part = self._meter.enter(self.now_s, self.slots) if self._meter else None
        self._at(self.now_s + length_s, lambda: self._end(team, charge, actual_s, asked_s, part))

    def _end(self, team: Team, charge: Charge, actual_s: float, asked_s: float, part: Part | None) -> None:
        if self._meter and part:
            actual_s = self._meter.leave(part, self.now_s, self.slots)
        self.fairness.end(charge, actual_s)
        self.under_way -= 1
        team.served_s += actual_s
        team.waits_s.append(self.now_s - asked_s)
        if team.clients:
            self._ask(team)

    def _switch(self, team: Team) -> None:
        self.is_switching = True
        self._at(self.now_s + self.switch_s, lambda: self._loaded(team))

    def _loaded(self, team: Team) -> None:
        self.is_switching, self.model, self.due = False, team.model, team
        self.switching_s += self.switch_s
        self.longest_charge_s = max(self.longest_charge_s, self.switch_s / team.weight)
        self.fairness.switched(team.name, team.weight, self.switch_s)

    def _look(self) -> None:
        levels = [self.fairness.level_s(team.name) for team in self.teams.values() if team.tickets]
        if len(levels) > 1:
            self.spreads_s.append(max(levels) - min(levels))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
