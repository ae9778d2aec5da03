"""What the admin pages need of what reports the state: that of Ollamas, or that of the nodes of a front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from router.admin.askers import OPERATOR, Asker


class Reporting(Protocol):
    """Reports state as plain data; see `Inspector`."""

    def add_notes(self, notes: Callable[[], dict[str, Any]]) -> None:
        """Set what returns further details for `/readyz`."""

    def drain(self, *, is_draining: bool = True) -> None:
        """Make `ready` return False, or True again."""

    def explain(self, model: str, num_ctx: int | None = None, asker: Asker = OPERATOR) -> dict[str, Any]:
        """Return the current decision for a plain request."""

    def state(self) -> dict[str, Any]:
        """Return cards, residents, queue and notes."""

    def decisions(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the recent decisions, newest first."""

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether requests can be served, with details."""

    def config(self) -> dict[str, Any]:
        """Return the effective configuration, without secrets."""


class Boarding(Protocol):
    """Builds the data of the dashboard; see `Board`."""

    def data(self) -> dict[str, Any]:
        """Return everything that the dashboard shows, except the decisions."""

    def decisions(self) -> list[dict[str, Any]]:
        """Return the newest decisions and switches."""

    async def watch(self) -> None:
        """Observe until cancelled."""
