"""What is wrong with a setting: where it is, what was found there, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """Text about what was found, where there is no value to show."""

    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that is not allowed: where it is, what was found there, and what is allowed."""

    path: Path
    found: object
    allowed: str


def present(path: Path, data: object) -> Iterator[str | int]:
    """Yield `path` as the user wrote it, without parts that stand for a short form (`variants`, `model`)."""
    node = data
    for index, part in enumerate(path):
        if isinstance(node, Mapping) and (part in node or index == len(path) - 1):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        yield part
