"""Reads the files of the teams, which `teams` in router.yaml names.

A file that is unchanged is not parsed again: with a thousand teams that takes seconds. Of a key only the hash is kept.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from router.config.chain_checks import chain_problems
from router.config.chain_sections import ChainSection
from router.config.keys import read_keys
from router.config.paths import FOLDER, folder_of, placed
from router.config.reporting import config_error, problems_of
from router.config.source import Document, decoded, in_known_case, read_text
from router.config.team_section import TeamSection
from router.config.team_values import shown_moment
from router.config.untrusted import read_regular_file
from router.core.teams.team import Key
from router.errors import ConfigError

MOST_FILES = 10_000
Override = tuple[tuple[str, ...], object, str]
"""A value from the environment: the key path below ``teams``, the value, the variable."""


class NoTeamFiles(ConfigError):
    """The pattern matches no files, or far too many; `allowed` says what it may match."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found)
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class TeamFile:
    """A team as its file describes it; `keys` are with their hashes, and `section` is without them.

    `hash_files` are the files that hashes were read from.
    """

    path: str
    section: TeamSection
    keys: tuple[Key, ...]
    hash_files: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """Return all that the file sets as plain data, with the hashes masked."""
        data = self.section.model_dump(mode="json", by_alias=True)
        data["keys"] = [_shown_key(key) for key in self.keys]
        return {"file": self.path, **data}


def read_teams(
    pattern: str, base: FilePath, inherited: Mapping[str, ChainSection], overrides: Iterable[Override]
) -> tuple[TeamFile, ...]:
    """Return the teams whose files match `pattern`, which is relative to `base`, in the order of their names.

    `inherited` are the chains of router.yaml. Raise NoTeamFiles, or ConfigError with a line for each problem of them.
    """
    found, errors = [], []
    by_team = _by_team(overrides)
    paths = _found(pattern, base)
    for path in paths:
        try:
            found.append(_read(path, inherited, by_team))
        except ConfigError as exc:
            errors.append(exc.message)
    _KNOWN.keep_only(paths)
    known = {one.section.team.lower() for one in found}
    for name, of_team in by_team.items():
        if name not in known and not errors:
            errors.append(f"{of_team[0][2]}: found no team {name}; allowed: {', '.join(sorted(known)) or 'none'}")
    if errors:
        raise ConfigError("\n".join(errors))
    return tuple(found)


def matching(pattern: str, base: FilePath) -> list[str]:
    """Return the files that match `pattern`, which is relative to `base`; hidden ones do not."""
    return sorted(glob.glob(str(placed(pattern, FilePath(glob.escape(str(base)))))))


def _found(pattern: str, base: FilePath) -> list[str]:
    """Return the files that match; raise NoTeamFiles if there are none, so that no misspelling drops all teams."""
    found = matching(pattern, base)
    if not found:
        raise NoTeamFiles(f"no file that matches {pattern} in {base.absolute()}", "a pattern of existing files")
    if len(found) > MOST_FILES:
        raise NoTeamFiles(f"{len(found)} files that match {pattern}", f"at most {MOST_FILES}")
    if (odd := next((path for path in found if not path.isprintable()), None)) is not None:
        raise NoTeamFiles(f"the file {odd!a}, which matches {pattern}", "names of files that can be shown in one line")
    return found


def _by_team(overrides: Iterable[Override]) -> dict[str, list[Override]]:
    by_team: dict[str, list[Override]] = {}
    for path, value, place in overrides:
        by_team.setdefault(str(path[0]).lower(), []).append((path[1:], value, place))
    return by_team


def _read(path: str, inherited: Mapping[str, ChainSection], overrides: Mapping[str, list[Override]]) -> TeamFile:
    raw = read_regular_file(FilePath(path))
    file = _KNOWN.find(path, raw, overrides)
    if file is None:
        file = _parse(path, raw, overrides)
        _KNOWN.keep(file, raw, overrides)
    problems = list(chain_problems(file.section.chains, inherited))
    if problems:
        raise config_error(_document(path, raw, overrides.get(file.section.team.lower(), ())), problems)
    return file


def _parse(path: str, raw: bytes, overrides: Mapping[str, list[Override]]) -> TeamFile:
    document = _document(path, raw, ())
    name = document.data.get("team")
    if isinstance(name, str) and name.lower() in overrides:
        document = _document(path, raw, overrides[name.lower()])
    data = {key: value for key, value in document.data.items() if value is not None}
    try:
        section = TeamSection.model_validate(data, context={FOLDER: folder_of(FilePath(path))})
    except ValidationError as exc:
        raise config_error(document, problems_of(exc, TeamSection)) from None
    keys, problems = read_keys(section.keys, "keys")
    if problems:
        raise config_error(document, problems)
    files = tuple(one.sha256_file for one in section.keys if one.sha256_file)
    return TeamFile(path, section.model_copy(update={"keys": ()}), keys, files)


def _document(path: str, raw: bytes, overrides: Iterable[Override]) -> Document:
    document = read_text(decoded(raw, path), path)
    for key_path, value, place in overrides:
        document = document.with_value(in_known_case(key_path, document.data), value, place)
    return document


def _shown_key(key: Key) -> dict[str, Any]:
    expires = None if key.expires_s is None else shown_moment(key.expires_s)
    return {"id": key.id, "ssh" if key.is_ssh else "sha256": "***", "expires": expires}


class _Known:
    """The teams that were read last; one for each path, so that versions do not pile up."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, TeamFile]] = {}

    def find(self, path: str, raw: bytes, overrides: Mapping[str, list[Override]]) -> TeamFile | None:
        """Return the team of a file that has not changed, nor those with its hashes; None if it must be read."""
        digest, file = self._known.get(path, (b"", None))
        return file if file is not None and digest == _digest(raw, overrides, file.hash_files) else None

    def keep_only(self, paths: Iterable[str]) -> None:
        """Forget the files that are no more."""
        kept = set(paths)
        for path in [path for path in self._known if path not in kept]:
            del self._known[path]

    def keep(self, file: TeamFile, raw: bytes, overrides: Mapping[str, list[Override]]) -> None:
        """Remember what was read."""
        if len(self._known) >= MOST_FILES:
            self._known.clear()
        self._known[file.path] = _digest(raw, overrides, file.hash_files), file


_KNOWN = _Known()


def _digest(raw: bytes, overrides: Mapping[str, list[Override]], hash_files: tuple[str, ...]) -> bytes:
    """Return what changes with a file, with the variables that override it, and with the files of its hashes."""
    digest = hashlib.sha256(raw + repr(sorted(overrides.items(), key=str)).encode())
    for file in hash_files:
        try:
            digest.update(hashlib.sha256(read_regular_file(FilePath(file))).digest())
        except ConfigError:
            digest.update(b"?")
    return digest.digest()
