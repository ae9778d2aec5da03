"""What a reload has changed, in one line: teams, keys of teams, chains, and other keys. Nothing secret is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from router.config.root import Config
from router.config.team_files import TeamFile

MOST_NAMES = 8
NOTHING = "nothing differs"


def summary(before: Config, after: Config, changed: Iterable[str], *, has_new_files: bool = False) -> str:
    """Return what differs between two configurations, whose dotted keys that differ are `changed`.

    `has_new_files`: the content of certificates or credentials differs.
    """
    parts = list(_teams(before.team_files, after.team_files))
    parts += _named("chains", before.chains, after.chains)
    others = [key for key in changed if key not in ("chains", "team_files")]
    parts += [_listed(others)] if others else []
    if has_new_files:
        parts.append("certificates or credentials")
    return "; ".join(parts) or NOTHING


def _teams(before: tuple[TeamFile, ...], after: tuple[TeamFile, ...]) -> Iterator[str]:
    old, new = ({file.section.team: file for file in files} for files in (before, after))
    yield from _named("teams", old, new, _what_changed)


def _what_changed(old: TeamFile, new: TeamFile) -> str:
    """Return which keys of a team's file differ, without those of its credentials, of which only the ids are named."""
    fields = type(new.section).model_fields
    found = [field.alias or name for name, field in fields.items() if _differ(old.section, new.section, name)]
    ids, new_ids = {key.id for key in old.keys}, {key.id for key in new.keys}
    found += [f"key {name} added" for name in sorted(new_ids - ids)]
    found += [f"key {name} removed" for name in sorted(ids - new_ids)]
    known = {key.id: key for key in old.keys}
    found += [f"key {key.id} changed" for key in new.keys if key.id in known and key != known[key.id]]
    return f" ({_listed(found)})" if found else ""


def _differ(old: object, new: object, name: str) -> bool:
    return bool(getattr(old, name) != getattr(new, name))


def _named(kind: str, old: Mapping[str, Any], new: Mapping[str, Any], what: Any = lambda _old, _new: "") -> list[str]:
    """Return which entries were added, removed and changed."""
    found = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": [f"{name}{what(old[name], new[name])}" for name in new if name in old and new[name] != old[name]],
    }
    return [f"{kind} {verb}: {_listed(names)}" for verb, names in found.items() if names]


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
