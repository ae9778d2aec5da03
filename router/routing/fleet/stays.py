"""Which waiting requests were found to be where they are served soonest, so that those that wait alike need not ask."""

from __future__ import annotations

from collections.abc import Hashable

KEPT_S = 0.9
"""How long a finding counts: less than the time between two looks of a request, so that one alone always looks."""

MOST_KEPT = 1024


class Stays:
    """Only that nothing is better elsewhere is kept: where something is, the first that goes may have taken it."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[float, float]] = {}

    def note(self, alike: Hashable, waited_s: float, now_s: float) -> None:
        """Note that a request that has waited for `waited_s` stays; those that wait like it have the key `alike`."""
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[alike] = now_s + KEPT_S, waited_s

    def holds(self, alike: Hashable, waited_s: float, now_s: float) -> bool:
        """Return True if one that has waited as long or longer was found to stay.

        The longer one has waited, the worse is the estimate for where it is: one that has waited less stays too.
        """
        until_s, longest_s = self._kept.get(alike, (0.0, 0.0))
        return now_s < until_s and waited_s <= longest_s
