"""What the admin pages need of what reports the state: of Ollamas, or of the nodes of a front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from router.admin.askers import OPERATOR, Asker
from router.admin.configuration import Configuration
from router.telemetry import RecentDecisions, Telemetry


class Reporting:
    """Reports state as plain data; see `Inspector`.

    `configuration` is the one in force; `config_notes` returns what is wrong with its models.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        recent: RecentDecisions,
        configuration: Configuration,
        config_notes: Callable[[], list[str]] = list,
    ) -> None:
        self._telemetry = telemetry
        self._recent = recent
        self._configuration = configuration
        self._config_notes = config_notes
        self._is_draining = False
        self._further: Callable[[], dict[str, Any]] = dict

    def add_notes(self, notes: Callable[[], dict[str, Any]]) -> None:
        """Set what returns further details for `/readyz`."""
        self._further = notes

    def drain(self, *, is_draining: bool = True) -> None:
        """Make `ready` return False, because the router is about to stop; or True again."""
        self._is_draining = is_draining

    def explain(self, model: str, num_ctx: int | None = None, asker: Asker = OPERATOR) -> dict[str, Any]:
        """Return the current decision for a plain request."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return cards, residents, queue and notes."""
        raise NotImplementedError

    def decisions(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the recent decisions, newest first, at most `most` of them."""
        self._telemetry.flush()
        return self._recent.rows(most)

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether requests can be served, with details for `/readyz`."""
        is_ready, details = self._readiness()
        return is_ready and not self._is_draining, {**details, **self._further(), "draining": self._is_draining}

    def _readiness(self) -> tuple[bool, dict[str, object]]:
        """Return the same, unless the router is about to stop."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return the effective configuration, without secrets; not on the loop."""
        return self._configuration.shown()


class Boarding(Protocol):
    """Builds the data of the dashboard; see `Board`."""

    def data(self) -> dict[str, Any]:
        """Return everything that the dashboard shows, except the decisions."""

    def decisions(self) -> list[dict[str, Any]]:
        """Return the newest decisions and switches."""

    async def watch(self) -> None:
        """Observe until cancelled."""
