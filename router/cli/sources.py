"""Where `serve` has its configuration from: a file and the environment, over which the command line holds.

A reload reads the file again. What the command line or handed-over sockets have set stays as it is, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from router.cli.files import within
from router.config import Config, load_config
from router.errors import ConfigError


class Sources:
    """`options` hold over the file at `path`; `files` is how many the process may open. `say` takes warnings."""

    def __init__(self, path: Path | None, options: Mapping[str, object], files: int | None) -> None:
        self.say: Callable[[str], None] = lambda _text: None
        self._path, self._options, self._files = path, options, files
        self._written = self._read_written()

    def load(self) -> Config:
        """Return the configuration; say what of it has no effect. Raises ConfigError."""
        found, warning = within(load_config(self._path, options=self._options), self._files)
        written = self._read_written()
        changed = [key for key, value in written.items() if self._written.get(key, value) != value]
        self._written = written
        if changed:
            keys = " and ".join(changed)
            self.say(f"a reload does not change {keys}: the command line, or a socket that was handed over, has set it")
        if warning:
            self.say(warning)
        return found

    def _read_written(self) -> dict[str, Any]:
        """Return what file and environment say of the keys that `options` hold for."""
        try:
            written = load_config(self._path)
        except ConfigError:  # the options may be what makes it valid
            return {}
        return {key: reduce(_at, key.split("."), written) for key in self._options}


def _at(section: Any, name: str) -> Any:
    return section.get(name) if isinstance(section, Mapping) else getattr(section, name, None)
