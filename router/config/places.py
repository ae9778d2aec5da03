"""Where in its file a key is: read again when it is asked for, because lines are rarely needed."""

from __future__ import annotations

from pathlib import Path as FilePath

from router.config.problems import Path, present
from router.config.source import Document, read_file
from router.errors import ConfigError


class Places:
    """The places of keys in router.yaml (`file`, None = there is none) and in the files of the teams."""

    def __init__(self, file: FilePath | None = None) -> None:
        self._file = file
        self._documents: dict[str, Document | None] = {}

    def of(self, path: Path, team_file: str | None = None) -> str:
        """Return file and line of the key path in a team's file, or in router.yaml; the file alone if it is gone."""
        file = team_file if team_file is not None else str(self._file) if self._file is not None else ""
        if not file:
            return "defaults"
        if file not in self._documents:
            self._documents[file] = _read(file)
        document = self._documents[file]
        return file if document is None else document.place_of(tuple(present(path, document.data)))


def _read(file: str) -> Document | None:
    try:
        return read_file(FilePath(file))
    except ConfigError:
        return None
