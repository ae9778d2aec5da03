"""What a reload does: which keys differ, and whether the running router can take them over or the next one must.

Nothing here belongs on the loop: reading the files of a thousand teams takes a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal

from router.config.named import models_named
from router.config.outside import outside_digest, outside_files
from router.config.paths import folder_of
from router.config.root import Config
from router.config.rulebook import Rulebook, rulebook_of
from router.config.team_files import matching
from router.core.advice.chains import Named
from router.core.teams.signature import Verify

Way = Literal["in place", "next router"]

IN_PLACE = (
    "teams",
    "team_files",
    "default_team",
    "watch_files",
    "chains",
    "clients.nothing_fits",
    "clients.keep_alive_forever",
    "clients.num_gpu",
    "defaults.auto_chains",
    "defaults.nothing_fits",
    "defaults.upgrade",
    "defaults.prefer",
    "defaults.max_load_wait_s",
    "defaults.upgrade_after_s",
    "defaults.preload",
    "fairness.window_s",
    "fairness.age_bound_s",
)
"""The running router takes these over: its connections, its queue and what is loaded stay."""

_MEANINGS: dict[Way, str] = {
    "in place": "taken over at once",
    "next router": "taken over by a next router in the same process, while the one before ends its requests",
}
_BY_RESTART = "not taken over by a reload, because the router itself has the port: restart it"


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A configuration that was read and checked, with what follows from it.

    `named` are the models that it names; `outside` stands for the content of certificates and credentials.
    """

    config: Config
    book: Rulebook
    named: tuple[Named, ...] = field(repr=False)
    outside: bytes = b""


def prepare(config: Config, serial: int = 1, verify: Verify | None = None) -> Loaded:
    """Return the configuration with all that a router needs of it. `serial` and `verify` are the rulebook's."""
    book = rulebook_of(config, serial, verify)
    return Loaded(config, book, tuple(models_named(config)), outside_digest(config))


def way_to(changed: Iterable[str], before: Loaded, after: Loaded) -> Way:
    """Return how `after` takes the place of `before`, whose `differences` are `changed`."""
    ways = {way_of(key) for key in changed}
    return "next router" if before.outside != after.outside or "next router" in ways else "in place"


def differences(before: Config, after: Config) -> list[str]:
    """Return the dotted keys that differ; "team_files" if any of those does."""
    found = changed_keys(before.model_dump(mode="json"), after.model_dump(mode="json"))
    if before.keys_of_admins != after.keys_of_admins and "admin_keys" not in found:  # hashes are masked, or in files
        found.append("admin_keys")
    if before.node_keys != after.node_keys and "node.key_sha256_file" not in found:
        found.append("node.key_sha256_file")
    return [*found, *(["team_files"] if before.team_files != after.team_files else [])]


def way_of(key: str) -> Way:
    """Return how a reload takes over a key, dotted."""
    return "in place" if any(_is_within(key, one) for one in IN_PLACE) else "next router"


def meaning_of(key: str, before: Config, after: Config) -> str:
    """Return in words how a reload from `before` to `after` takes over a key that differs."""
    if key in ("listen", "admin"):
        old, new = getattr(before, key), getattr(after, key)
        if old.port == new.port != 0 and old.host != new.host:
            return _BY_RESTART
    return _MEANINGS[way_of(key)]


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ between two effective configurations."""
    return list(_differences(before, after, ""))


def watched_files(config: Config, file: FilePath | None) -> Iterator[FilePath]:
    """Yield the files on which a configuration depends, as they are now.

    Its own, those of teams and of hashes, certificates, and what the router identifies itself by.
    """
    if file is not None:
        yield file
    yield from (FilePath(outside) for _, outside in outside_files(config))
    yield from (FilePath(key.sha256_file) for key in config.admin_keys if key.sha256_file)
    if config.node.key_sha256_file is not None:
        yield FilePath(config.node.key_sha256_file)
    if config.teams is None:
        return
    yield from map(FilePath, matching(config.teams, folder_of(file)))
    for team in config.team_files:
        yield from map(FilePath, team.hash_files)


def _is_within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _differences(before: object, after: object, key: str) -> Iterator[str]:
    # Names of chains are names of models, with dots of their own: a chain differs as a whole.
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)) or key == "chains":
        if before != after:
            yield key
        return
    for part in dict.fromkeys((*before, *after)):
        yield from _differences(before.get(part), after.get(part), f"{key}.{part}" if key else part)
