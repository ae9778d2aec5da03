"""Past loads as the formula predicts them for the server's setup, which may have been recognised only later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from router.core.learning.observation import Observation
from router.core.learning.setup import Setup


class Rebased(Mapping[str, tuple[Observation, ...]]):
    """Past loads by weights, each as predicted for the server's setup; computed when they are asked for."""

    def __init__(self, raw: Mapping[str, Sequence[Observation]], setup: Setup, margin_bytes: int) -> None:
        self._raw, self._setup, self._margin_bytes = raw, setup, margin_bytes
        self._found: dict[str, tuple[Observation, ...]] = {}

    def __getitem__(self, weights: str) -> tuple[Observation, ...]:
        found = self._found.get(weights)
        if found is None:
            raw = self._raw[weights]
            found = self._found[weights] = tuple(one.under(self._setup, self._margin_bytes) for one in raw)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)
