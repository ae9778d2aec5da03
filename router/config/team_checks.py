"""The rules on which the files of all teams must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from router.config.places import Places
from router.config.problems import Path
from router.config.team_files import TeamFile
from router.core.teams.team import ANYONE

BUILT_IN = ANYONE.team.name
"""The team that exists without a file: clients without a key, with the rights of a fresh installation."""


def disagreements(files: tuple[TeamFile, ...], taken: Mapping[bytes, str]) -> Iterator[str]:
    """Yield a line for each team name, key and network that is in two files.

    `taken` says of the hashes of router.yaml's own keys what they are: such a key would give a team more than its file.
    """
    places = Places()
    yield from _names(files, places)
    yield from _keys(files, places, taken)
    yield from _networks(files, places)


def _names(files: tuple[TeamFile, ...], places: Places) -> Iterator[str]:
    seen: dict[str, TeamFile] = {}
    for file in files:
        first = seen.setdefault(file.section.team.lower(), file)
        if first is not file:
            found = f'"{file.section.team}", which is the team of {places.of(("team",), first.path)} too'
            yield _line(places, file, ("team",), "team", found, "one file for each team")


def _keys(files: tuple[TeamFile, ...], places: Places, taken: Mapping[bytes, str]) -> Iterator[str]:
    seen: dict[bytes, tuple[TeamFile, int]] = {}
    for file in files:
        for index, key in enumerate(file.keys):
            if key.sha256 in taken:
                yield _line(places, file, ("keys", index), f"keys[{index}]", taken[key.sha256], "a key of its own")
            first, other = seen.setdefault(key.sha256, (file, index))
            if first is not file:
                place = places.of(("keys", other), first.path)
                found = f"the key {first.keys[other].id} of the team {first.section.team} ({place})"
                yield _line(places, file, ("keys", index), f"keys[{index}]", found, "each key in one team")


def _networks(files: tuple[TeamFile, ...], places: Places) -> Iterator[str]:
    """Yield a line for each network of two teams. One within another team's is no problem: the smaller one counts."""
    seen: dict[object, tuple[TeamFile, int]] = {}
    for file in files:
        for index, network in enumerate(file.section.networks):
            first, other = seen.setdefault(network, (file, index))
            if (first, other) != (file, index):
                place = places.of(("from", other), first.path)
                found = f'"{network}", which is of the team {first.section.team} ({place})'
                yield _line(places, file, ("from", index), f"from[{index}]", found, "each network once")


def _line(places: Places, file: TeamFile, path: Path, key: str, found: str, allowed: str) -> str:
    return f"{places.of(path, file.path)}: {key}: found {found}; allowed: {allowed}"
