"""How many models an Ollama keeps loaded at once, by what it unloads: OLLAMA_MAX_LOADED_MODELS, which no API shows.

A load that would have fitted beside the others, and during which one of them left, is a sign. Two in a row at the same
number show a limit, unless more have been loaded together. It is used for `LIMIT_S`, then tried again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from router.telemetry import Notified, Telemetry

SIGNS = 2
"""Loads in a row that show the same number: one may be an eviction for another reason."""

LIMIT_S = 3600.0
"""For this long a limit is used: while it is, nothing can show that it has gone."""


class LoadedLimit:
    """The limit of one Ollama. `on_change` is called when it changes; with `is_auto` False it is only named."""

    def __init__(self, telemetry: Telemetry, on_change: Callable[[], None], *, is_auto: bool) -> None:
        self._telemetry = telemetry
        self._on_change = on_change
        self._is_auto = is_auto
        self._most = 0  # loaded together
        self._signs = (0, 0)  # the number that the last loads showed, and how many did
        self._found, self._until_s = 0, -math.inf
        self._now = asyncio.get_running_loop().time

    @property
    def count(self) -> int:
        """How many models stay loaded together by what loads have shown; 0 = unknown, or not to be used."""
        return self._found if self._is_auto and self._now() < self._until_s else 0

    def note(self, loaded: int, *, has_left: bool) -> None:
        """Note a load after which `loaded` models are loaded; `has_left`: another has left that was to stay."""
        self._most = max(self._most, loaded)
        number, signs = self._signs
        if not has_left:
            self._signs = (0, 0) if loaded > number else self._signs
            return
        self._signs = (loaded, signs + 1 if number == loaded else 1)
        if self._signs[1] >= SIGNS and self._most <= loaded:
            self._find(loaded)

    def _find(self, loaded: int) -> None:
        is_news = self._found != loaded
        self._found, self._until_s, self._most = loaded, self._now() + LIMIT_S, 0
        self._on_change()
        if is_news:
            self._telemetry.emit(Notified(self.notes()[0], level="warning"))

    def notes(self) -> list[str]:
        """Return what an operator should know, as sentences."""
        if self._now() >= self._until_s:
            return []
        models = "1 model" if self._found == 1 else f"{self._found} models"
        follows = "planned with that" if self._is_auto else "not planned with that, because server.auto is false"
        return [
            f"Ollama keeps at most {models} loaded, as with OLLAMA_MAX_LOADED_MODELS={self._found}: {follows}. "
            "Set backends.NAME.server.max_loaded_models"
        ]

    def forget(self) -> None:
        """Forget it: Ollama has restarted, or the operator says so."""
        self._signs, self._found, self._until_s, self._most = (0, 0), 0, -math.inf, 0
        self._on_change()
