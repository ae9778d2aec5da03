"""The keys of the schema, and which of them two configurations tell apart."""

from __future__ import annotations

import json
from collections.abc import Iterator

from router.config import schema


def keys() -> set[str]:
    """Every key of the schema, dotted; `*` stands for the name of a backend or chain and for a place in a list."""
    whole = schema()
    return set(_leaves(whole, whole["$defs"], ()))


def unproven(wanted, configurations) -> list[str]:
    """Those of the keys `wanted` that do not have two different values in `configurations`."""
    return [key for key in wanted if len({tuple(values_of(one, key.split("."))) for one in configurations}) < 2]


def values_of(node, path) -> Iterator[str]:
    """What stands at `path` within a configuration, as JSON."""
    if not path:
        yield json.dumps(node, sort_keys=True)
    elif path[0] == "*" and isinstance(node, (dict, list)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from values_of(inner, path[1:])
    elif isinstance(node, dict) and path[0] in node:
        yield from values_of(node[path[0]], path[1:])


def _leaves(node, sections, path) -> Iterator[str]:
    if "$ref" in node:
        yield from _leaves(sections[node["$ref"].rpartition("/")[2]], sections, path)
    elif "anyOf" in node:
        mappings = [branch for branch in node["anyOf"] if "$ref" in branch or "properties" in branch]
        for branch in mappings or node["anyOf"]:  # beside a mapping the others are short forms of it
            yield from _leaves(branch, sections, path)
    elif "properties" in node:
        for name, inner in node["properties"].items():
            yield from _leaves(inner, sections, (*path, name))
    elif isinstance(node.get("additionalProperties"), dict):
        yield from _leaves(node["additionalProperties"], sections, (*path, "*"))
    else:
        entries = list(_leaves(node.get("items", {}), sections, (*path, "*"))) if "items" in node else []
        yield from entries
        if not entries and path[-1] != "*":
            yield ".".join(path)
