"""The files that a router reads when it starts, beside its configuration: certificates, and its own credentials.

They are listed once, for all that is done with them: `check` says which of them cannot be used, they are watched, and a
reload sees that one has another content. Files of hashes are none of them: they are read with the configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path as FilePath

from router.config.problems import Path
from router.config.root import Config
from router.config.section import Section


def outside_files(config: Config) -> Iterator[tuple[Path, str]]:
    """Yield each of them with the path of its key. What is named, but not used, is left out."""
    yield from _named(config.tls, ("tls",), "cert", "key", "client_ca")
    for name, section in config.backends.items():
        yield from _named(section, ("backends", name), "ca", "client_cert", "client_key")
        yield from _named(section, ("backends", name), "key_file", "bearer_file", "basic_file")
    yield from _named(config.usage, ("usage",), "postgres_file")
    if config.shared.valkey is not None:
        yield from _named(config.shared, ("shared",), "password_file", "ca")


def _named(section: Section, path: Path, *keys: str) -> Iterator[tuple[Path, str]]:
    for key in keys:
        if (file := getattr(section, key)) is not None:
            yield (*path, key), file


def outside_digest(config: Config) -> bytes:
    """Return what changes with the content of these files."""
    digest = hashlib.sha256()
    for _, file in outside_files(config):
        digest.update(_content(FilePath(file)))
    return digest.digest()


def _content(file: FilePath) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b""
    except OSError:
        return b"?"
