"""The configuration in force for people: which one it is, and whether the last reload was taken."""

from __future__ import annotations

from typing import Any

from router.config import Config, effective


class Configuration:
    """Knows the configuration in force; `serial` counts them, and `digest` differs where they differ."""

    def __init__(self, config: Config, serial: int = 1, digest: str = "") -> None:
        self._config = config
        self._serial, self._digest = serial, digest
        self._error: str | None = None

    def replace(self, config: Config, serial: int, digest: str) -> None:
        """Show `config` from now on: it was reloaded."""
        self._config, self._serial, self._digest, self._error = config, serial, digest, None

    def refuse(self, error: str) -> None:
        """Show why the last reload has changed nothing."""
        self._error = error

    def shown(self) -> dict[str, Any]:
        """Return all keys without secrets. With a thousand teams this takes a moment: not on the loop."""
        return effective(self._config)

    def state(self) -> dict[str, Any]:
        """Return which configuration is in force; `reload_error` is null if the last reload was taken."""
        return {"serial": self._serial, "digest": self._digest, "reload_error": self._error}
