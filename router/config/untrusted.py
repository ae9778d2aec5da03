"""What a configuration file, or one that it names, must not be: a pipe, a device, YAML with tags or many aliases."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, MappingStartEvent, NodeEvent, ScalarEvent, SequenceStartEvent

from router.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_NODES = 200_000
"""Values in a document with its aliases written out: nine lists of nine aliases each would be 387 million."""

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_MAX_ALIASES = 1000
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS: tuple[tuple[type[NodeEvent], frozenset[str]], ...] = (
    (ScalarEvent, frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null"))),
    (MappingStartEvent, frozenset((f"{_TAG}map",))),
    (SequenceStartEvent, frozenset((f"{_TAG}seq",))),
)


def read_regular_file(path: Path) -> bytes:
    """Return the content of `path`. Raise ConfigError if it cannot be read, is too big, or is not a regular file."""
    try:
        # Without O_NONBLOCK the opening of a pipe that nobody writes to would never end.
        with open(os.open(path, _READ), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: found a directory, pipe or device; allowed: a readable YAML file")
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise ConfigError(f"{path}: cannot be read: {why}; allowed: a readable YAML file") from exc
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: found more than {MAX_BYTES} bytes; allowed: at most {MAX_BYTES}")
    return raw


def require_regular(path: str, where: str, allowed: str) -> None:
    """Raise ConfigError for a directory, pipe or device, whose opening or reading might never end.

    `where` is the key that names it. A missing file is left to what opens it.
    """
    try:
        is_regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return
    if not is_regular:
        raise ConfigError(f"{where}: {path}: found a directory, pipe or device; allowed: {allowed}")


def screen(text: str, name: str) -> None:
    """Raise ConfigError if `text` has a tag of more than a plain value, or very many aliases.

    `name` stands for the file. Raises ruamel's errors for what is not YAML.
    """
    if "!" not in text and "&" not in text:  # parsing twice would cost as much again
        return
    aliases = 0
    for event in YAML(typ="rt", pure=True).parse(io.StringIO(text)):
        if not isinstance(event, NodeEvent):
            continue
        line = event.start_mark.line + 1
        tag = str(getattr(event, "tag", None) or "")
        if tag not in ("", "!") and not any(isinstance(event, kind) and tag in tags for kind, tags in _PLAIN_TAGS):
            shown = tag.replace(_TAG, "!!")[:80]
            raise ConfigError(f"{name}:{line}: found the tag {shown}; allowed: values without a tag")
        aliases += isinstance(event, AliasEvent)
        if aliases > _MAX_ALIASES:
            raise ConfigError(f"{name}:{line}: found more than {_MAX_ALIASES} aliases; allowed: fewer")
