"""Keys as the configuration lists them: never themselves, only what they can be recognized by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

from pydantic import model_validator

from router.config.paths import FileName
from router.config.problems import Description, Problem
from router.config.section import Section
from router.config.team_values import HASH_ALLOWED, Hash, KeyId, Moment, SshKey, parse_hash, ssh_blob_of
from router.config.untrusted import read_regular_file
from router.config.values import allowed
from router.core.teams.keys import digest_of
from router.core.teams.team import Key
from router.errors import ConfigError

MOST_HASHES = 16
"""In one file: two for a change of keys, and some more."""


class AdminKeySection(Section):
    id: KeyId
    """its name in logs and usage"""
    sha256: Hash | None = None
    """SHA-256 of the key, in hex"""
    sha256_file: FileName | None = None
    """file with the SHA-256 instead; read again by a reload"""
    expires: Moment | None = None
    """when the key ends to be valid: a date (its first moment, UTC) or a date with time; null = never"""

    @model_validator(mode="after")
    def _has_one_form(self) -> AdminKeySection:
        forms = {name: getattr(self, name, None) for name in ("sha256", "sha256_file", "ssh") if hasattr(self, name)}
        if sum(value is not None for value in forms.values()) != 1:
            raise allowed(f"one of {', '.join(list(forms)[:-1])} and {list(forms)[-1]}")
        return self


class KeySection(AdminKeySection):
    ssh: SshKey | None = None
    """SSH public key instead (ssh-ed25519 …), with which the ollama command signs if OLLAMA_AUTH=1 is set"""


def read_keys(sections: tuple[AdminKeySection, ...], name: str) -> tuple[tuple[Key, ...], list[Problem]]:
    """Return the keys of the list `name`, and the problems with them."""
    keys, problems = [], []
    for index, one in enumerate(sections):
        try:
            keys.append(_key_of(one))
        except NoHash as exc:
            problems.append(Problem((name, index, "sha256_file"), Description(exc.found), exc.allowed))
    return tuple(keys), [*problems, *_repeated(sections, keys, name)]


def _key_of(section: AdminKeySection) -> Key:
    ssh = getattr(section, "ssh", None)
    if ssh is not None:
        return Key(section.id, digest_of(ssh_blob_of(ssh)), section.expires, is_ssh=True)
    return Key(section.id, _hash_of(section), section.expires)


def _repeated(sections: tuple[AdminKeySection, ...], keys: list[Key], name: str) -> Iterator[Problem]:
    """Yield a problem for each key that stands in its file twice."""
    ids: set[str] = set()
    for index, one in enumerate(sections):
        if one.id in ids:
            yield Problem((name, index, "id"), one.id, "each id once")
        ids.add(one.id)
    hashes: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        if hashes.setdefault(key.sha256, index) != index:
            first = keys[hashes[key.sha256]].id
            yield Problem((name, index), Description(f"the key {first} again"), "each key once")


class NoHash(Exception):
    """The file of a hash that cannot be used."""

    def __init__(self, found: str, allowed: str) -> None:
        self.found, self.allowed = found, allowed


def _hash_of(key: AdminKeySection) -> bytes:
    """Return the hash of a key, from its file if it has one. The file may be in the form of sha256sum."""
    if key.sha256_file is None:
        return bytes.fromhex(key.sha256 or "")
    file = FilePath(key.sha256_file)
    return _parsed(next(iter(_content_of(file).split()), ""), file)


def hashes_in(file: FilePath) -> tuple[bytes, ...]:
    """Return the hashes in a file, one at the beginning of each line; at least one. Raises NoHash."""
    lines = [line.split() for line in _content_of(file).splitlines()]
    words = [line[0] for line in lines if line and not line[0].startswith("#")] or [""]
    if len(words) > MOST_HASHES:
        raise NoHash(f"{file} with {len(words)} lines", f"at most {MOST_HASHES}, each {HASH_ALLOWED}")
    return tuple(_parsed(word, file) for word in words)


def _content_of(file: FilePath) -> str:
    try:
        return read_regular_file(file).decode("utf-8", "replace")
    except ConfigError as exc:
        raise NoHash(exc.message.partition("; allowed")[0], f"a readable file with {HASH_ALLOWED}") from None


def _parsed(word: str, file: FilePath) -> bytes:
    try:
        return bytes.fromhex(parse_hash(word))
    except Exception:
        raise NoHash(f"{file} with something else, which is not shown", HASH_ALLOWED) from None
