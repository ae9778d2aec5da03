"""The places that hold a model loaded, and which of them a request goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.core.decision.fleet.rendezvous import score, seed_of

LOAD_FACTOR = 1.25
"""A conversation leaves its place when that has more than this many times the mean load, and one request more."""


class Holders:
    """The places that hold a model with enough context. Built once per state, asked for each request."""

    __slots__ = ("_seeds", "places")

    def __init__(self, places: Sequence[str]) -> None:
        self.places = tuple(sorted(places))
        self._seeds = tuple(map(seed_of, self.places))

    def pick(self, conversation: int, load_of: Callable[[str], int], load_factor: float = LOAD_FACTOR) -> str:
        """Return the place for a request of a conversation (0 = it has none); `load_of` counts a place's requests.

        The same conversation goes to the same place, whose caches know its beginning, while that is not over the bound.
        Otherwise the less loaded of the next two takes it; one without a conversation goes where least is to do.
        """
        places = self.places
        if len(places) == 1:
            return places[0]
        loads = [load_of(place) for place in places]
        if not conversation:
            return places[loads.index(min(loads))]
        scores = [score(conversation, seed) for seed in self._seeds]
        first = scores.index(max(scores))
        if loads[first] <= bound(loads, load_factor):
            return places[first]
        others = sorted((at for at in range(len(places)) if at != first), key=lambda at: -scores[at])[:2]
        return places[min(others, key=loads.__getitem__)]

    def order(
        self, conversation: int, load_of: Callable[[str], int], load_factor: float = LOAD_FACTOR
    ) -> tuple[str, ...]:
        """Return all places: the picked one, then the others by what they have to do."""
        first = self.pick(conversation, load_of, load_factor)
        others = (place for place in self.places if place != first)
        return (first, *sorted(others, key=lambda place: (load_of(place), -score(conversation, seed_of(place)))))


def bound(loads: Sequence[int], load_factor: float = LOAD_FACTOR) -> float:
    """Return the load that a place may have before others take its requests."""
    return bound_of_mean(sum(loads) / len(loads), load_factor)


def bound_of_mean(mean: float, load_factor: float = LOAD_FACTOR) -> float:
    """Return the same where the mean of the loads is known."""
    return load_factor * mean + 1
