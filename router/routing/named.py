"""Warnings about the models that the configuration names, while they are not installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from router.core.advice.chains import Named, Note, notes_on
from router.core.ollama.model import ModelFacts
from router.telemetry import Notified, Telemetry

CHECK_S = 1.0
"""Polling interval of the catalog, which changes when a model is pulled or deleted."""


class NamedModels:
    """Compares the models that the configuration names with those that are installed.

    `installed` returns these; None while they are not known.
    """

    def __init__(
        self, named: tuple[Named, ...], installed: Callable[[], Mapping[str, ModelFacts] | None], telemetry: Telemetry
    ) -> None:
        self._named = named
        self._installed = installed
        self._telemetry = telemetry
        self._catalog: object = None
        self._notes: tuple[Note, ...] = ()

    def replace(self, named: tuple[Named, ...]) -> None:
        """Compare these from now on: the configuration was reloaded."""
        self._named, self._catalog = named, None

    def notes(self) -> list[str]:
        """Return a sentence for each model that is missing, or cannot have the context that is named."""
        return [note.text for note in self._current()]

    def _current(self) -> tuple[Note, ...]:
        catalog = self._installed()
        if catalog is not None and catalog is not self._catalog:
            self._catalog, self._notes = catalog, notes_on(self._named, catalog)
        return self._notes

    async def watch(self) -> None:
        """Log each note when it becomes true, until cancelled."""
        known: set[Note] = set()
        while True:
            current = self._current()
            for note in current:
                if note not in known:
                    self._telemetry.emit(Notified(note.text, level="warning" if note.is_missing else "info"))
            known = set(current)
            await asyncio.sleep(CHECK_S)
