"""Edits the keys in a YAML file, and keeps everything else in it: comments, order, quotes; not the spaces in brackets.

A file is replaced as a whole, so that whoever reads it meanwhile sees the old or the new one, and only with one that is
still valid.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from router.config.source import decoded, read_text
from router.config.untrusted import read_regular_file
from router.errors import ConfigError

WIDTH = 4096
"""Longer lines are not folded: a hash stays on one."""

Entry = Mapping[str, str]
"""A key as it stands in a file: `id`, one of `sha256`, `sha256_file` and `ssh`, and perhaps `expires`."""


class KeyFile:
    """A file with keys: a team's under `keys`, the router's under `admin_keys`. Its methods raise ConfigError."""

    def __init__(self, path: FilePath, section: str, team: str = "") -> None:
        self._path, self._section, self._team = path, section, team
        self._yaml = YAML(typ="rt", pure=True)
        self._yaml.width, self._yaml.preserve_quotes = WIDTH, True
        self._yaml.indent(mapping=2, sequence=4, offset=2)
        self._data = self._load()

    @property
    def team(self) -> str:
        """The team that the file says it describes, "" if none."""
        return str(self._data.get("team") or "")

    def entry(self, key_id: str) -> Mapping[str, Any]:
        """Return a key of the file."""
        return dict(self._list()[self._place_of(key_id)])

    def add(self, entry: Entry) -> None:
        """Add a key at the end. Raise ConfigError if there is one with its id."""
        if any(known.get("id") == entry["id"] for known in self._list()):
            raise ConfigError(f"{self._path}: there is a key {entry['id']} already; allowed: another --id")
        keys = self._list()
        keys.fa.set_block_style()
        keys.append(_flow(entry))
        self._data[self._section] = keys

    def change(self, key_id: str, **values: str) -> None:
        """Set values of a key."""
        self._list()[self._place_of(key_id)].update(_flow(values))

    def remove(self, key_id: str) -> None:
        """Remove a key."""
        keys = self._list()
        del keys[self._place_of(key_id)]
        if not keys:  # without the comments of a list that has none left
            self._data[self._section] = CommentedSeq()
            self._data[self._section].fa.set_flow_style()

    def write(self) -> None:
        """Replace the file, with the permissions of the one before; hashes of keys are no secrets."""
        text = io.StringIO()
        self._yaml.dump(self._data, text)
        read_text(text.getvalue(), str(self._path))
        mode = self._path.stat().st_mode & 0o777 if self._path.exists() else 0o644
        target = self._path.resolve()
        try:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.chmod(name, mode)
                file.write(text.getvalue())
                file.flush()
                os.fsync(handle)
            os.replace(name, target)
        except OSError as exc:
            raise ConfigError(f"{self._path}: cannot be written: {exc.strerror or exc}") from None

    def _load(self) -> CommentedMap:
        if not self._path.exists():
            if not self._team:
                raise ConfigError(f"{self._path}: no such file; with --team NAME it is made")
            return CommentedMap(team=self._team)
        text = decoded(read_regular_file(self._path), str(self._path))
        read_text(text, str(self._path))  # which says what is wrong, with the line
        data = self._yaml.load(io.StringIO(text))
        return data if data is not None else CommentedMap()

    def _list(self) -> CommentedSeq:
        found = self._data.get(self._section)
        if found is None:
            return CommentedSeq()
        if not isinstance(found, CommentedSeq) or not all(isinstance(one, CommentedMap) for one in found):
            raise ConfigError(
                f"{self._path}: {self._section} is not a list of keys; allowed: entries with id and sha256"
            )
        return found

    def _place_of(self, key_id: str) -> int:
        ids = [str(entry.get("id")) for entry in self._list()]
        if key_id not in ids:
            raise ConfigError(f"{self._path}: found no key {key_id}; allowed: {', '.join(ids) or 'none'}")
        return ids.index(key_id)


def _flow(entry: Entry) -> CommentedMap:
    """Return an entry on one line; the values are quoted, because a hash may look like a number."""
    found = CommentedMap(
        {key: value if key == "id" else DoubleQuotedScalarString(value) for key, value in entry.items()}
    )
    found.fa.set_flow_style()
    return found


def line_of(entry: Entry) -> str:
    """Return the line of an entry for a list of keys."""
    return f"- {{ {', '.join(f'{name}: {_written(name, value)}' for name, value in entry.items())} }}"


def _written(name: str, value: str) -> str:
    return value if name == "id" else f'"{value}"'
