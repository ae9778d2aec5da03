"""How many requests a router has made lately: as many as it may want again, and which others do not know. Pure."""

from __future__ import annotations

from router.core.teams.minute import MINUTE_S


class Pace:
    """How much there was in the last second."""

    __slots__ = ("_before", "_now", "_second")

    def __init__(self) -> None:
        self._second = self._now = self._before = 0

    def add(self, now_s: float, count: int) -> None:
        """Count it."""
        self._turn_to(int(now_s))
        self._now += count

    def of(self, now_s: float) -> int:
        """Return the larger one of this second and the one before it."""
        self._turn_to(int(now_s))
        return max(self._now, self._before)

    def _turn_to(self, second: int) -> None:
        if second != self._second:
            self._before = self._now if second == self._second + 1 else 0
            self._second, self._now = second, 0


class Recent:
    """The requests of the last minute that this router has made, by second: those that the store knows, and others."""

    def __init__(self) -> None:
        self._counts: dict[int, list[int]] = {}

    def add(self, now_s: float, *, is_known: bool) -> None:
        """Count one."""
        second = int(now_s)
        if (counts := self._counts.get(second)) is None:
            counts = self._counts[second] = [0, 0]
            while next(iter(self._counts)) <= second - MINUTE_S:
                del self._counts[next(iter(self._counts))]
        counts[not is_known] += 1

    def tell(self, now_s: float) -> int:
        """Return how many the store does not know; it does from now on."""
        late = 0
        for second, counts in self._counts.items():
            if second > now_s - MINUTE_S:
                late += counts[1]
            counts[:] = [counts[0] + counts[1], 0]
        return late

    def forget(self) -> None:
        """Note that the store knows none of them."""
        for counts in self._counts.values():
            counts[:] = [0, counts[0] + counts[1]]

    @property
    def has_late(self) -> bool:
        """Whether there are some that the store does not know."""
        return any(late for _, late in self._counts.values())
