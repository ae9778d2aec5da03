"""What a request is expected to take of a loaded model: the estimate that it is charged at its start. Pure."""

from __future__ import annotations

from collections.abc import Collection

FIRST_S = 2.0
"""The estimate for a model of which no request has ended: an answer of a hundred tokens."""

NEW = 0.2
"""The part of the newest request in a running mean."""

MOST = 1024
"""Means that are kept: clients can name any number of models in the course of time."""


class Costs:
    """Running means of what requests took, by model and team: those of one team are of one kind, more than of all."""

    def __init__(self) -> None:
        self._means_s: dict[tuple[str, str], float] = {}

    def estimate_s(self, weights: str, team: str) -> float:
        """Return the card-seconds that a request of `team` for a model is expected to take."""
        mean_s = self._means_s.get((weights, team))
        if mean_s is None:
            mean_s = self._means_s.get((weights, ""), FIRST_S)
        return mean_s

    def keep_only(self, teams: Collection[str]) -> None:
        """Forget the means of all other teams; those of models stay."""
        self._means_s = {key: mean_s for key, mean_s in self._means_s.items() if not key[1] or key[1] in teams}

    def learn(self, weights: str, team: str, actual_s: float) -> None:
        """Take into account a request that has ended."""
        for key in ((weights, team), (weights, "")):
            mean_s = self._means_s.pop(key, None)
            self._means_s[key] = actual_s if mean_s is None else mean_s + (actual_s - mean_s) * NEW
        while len(self._means_s) > MOST:  # the one that was not learned from for longest
            del self._means_s[next(iter(self._means_s))]
