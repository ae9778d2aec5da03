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
        """Return a sentence for each model that is missing, or cannot have the named context, as of the last poll."""
        return [note.text for note in self._notes]

    async def _compare(self) -> None:
        catalog = self._installed()
        if catalog is None or catalog is self._catalog:
            return
        self._catalog, notes = catalog, []
        for note in notes_on(self._named, catalog):
            notes.append(note)
            await asyncio.sleep(0)  # others get their turn: a suggestion takes milliseconds
        self._notes = tuple(notes)

    async def watch(self) -> None:
        """Log each note when it becomes true, until cancelled."""
        known: set[Note] = set()
        while True:
            await self._compare()
            current = self._notes
            for note in current:
                if note not in known:
                    self._telemetry.emit(Notified(note.text, level="warning" if note.is_missing else "info"))
            known = set(current)
            await asyncio.sleep(CHECK_S)
