"""What the limits of teams count over all backends of a router: who waits, and how much was evicted of others."""

from __future__ import annotations

from router.backend.waitlist import Waitlist
from router.core.teams.evictions import Evictions


class TeamCounts:
    """The counts of all teams: each backend has a line of its own."""

    def __init__(self) -> None:
        self.evictions = Evictions()
        self._waitlists: list[Waitlist] = []

    def new_waitlist(self) -> Waitlist:
        """Return the line of one more backend."""
        self._waitlists.append(Waitlist())
        return self._waitlists[-1]

    def waiting(self, team: str) -> int:
        """Return how many requests of a team wait."""
        return sum(waitlist.by_team.get(team, 0) for waitlist in self._waitlists)
