"""A value that satisfies a JSON schema, as far as llama.cpp's grammars express schemas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

_DATES = {"date": "2026-01-02", "time": "03:04:05Z", "date-time": "2026-01-02T03:04:05Z"}
_DATES |= {"uuid": "6ba7b810-9dad-41d1-80b4-00c04fd430c8"}
_DEPTH = 32
_regular_expressions: Any = import_module("re._parser")


def specimen(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """Return a value of the schema. `root` resolves its references; a schema that no value satisfies is ignored."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return {}
    root = schema if root is None else root
    if "$ref" in schema:
        return specimen(_resolved(schema["$ref"], root), root, depth + 1)
    choices = schema.get("oneOf", schema.get("anyOf"))
    if choices and isinstance(choices, list):
        return specimen(choices[0], root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum") and isinstance(schema["enum"], list):
        return schema["enum"][0]
    return _typed(schema, root, depth)


def _typed(schema: Mapping[str, Any], root: Any, depth: int) -> Any:
    kind = _kind(schema)
    if kind == "array":
        return _array(schema, root, depth)
    if kind in ("integer", "number"):
        return _number(schema)
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    if kind == "string":
        return _text(schema)
    return {name: specimen(part, root, depth + 1) for name, part in _properties(schema, root).items()}


def _kind(schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind is not None:
        return kind
    named = {"items": "array", "prefixItems": "array", "pattern": "string", "format": "string", "minLength": "string"}
    is_object = {"properties", "additionalProperties", "allOf"} & schema.keys()
    return "object" if is_object else next((named[key] for key in named if key in schema), "object")


def _properties(schema: Mapping[str, Any], root: Any) -> dict[str, Any]:
    """Return the properties of an object, those of its parts included."""
    own = schema.get("properties")
    found = dict(own) if isinstance(own, Mapping) else {}
    parts = schema.get("allOf")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping):
            resolved = _resolved(part["$ref"], root) if "$ref" in part else part
            found |= _properties(resolved, root) if isinstance(resolved, Mapping) and resolved is not schema else {}
    return found


def _array(schema: Mapping[str, Any], root: Any, depth: int) -> list[Any]:
    items = schema.get("items", schema.get("prefixItems"))
    if isinstance(items, Sequence) and not isinstance(items, str):
        return [specimen(item, root, depth + 1) for item in items]
    least = schema.get("minItems")
    count = max(1, least) if isinstance(least, int) else 1
    return [specimen(items, root, depth + 1) for _ in range(count if items or least else 0)]


def _number(schema: Mapping[str, Any]) -> int:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    least = above + 1 if isinstance(above, int) else least
    most = below - 1 if isinstance(below, int) else most
    value = 1 if not isinstance(least, int | float) else max(1, int(least))
    return min(value, int(most)) if isinstance(most, int | float) else value


def _text(schema: Mapping[str, Any]) -> str:
    if isinstance(schema.get("pattern"), str):
        try:
            return _matching(_regular_expressions.parse(schema["pattern"].removeprefix("^").removesuffix("$")))
        except re.error:
            return "Paris"
    if schema.get("format") in _DATES:
        return _DATES[schema["format"]]
    least, most = schema.get("minLength"), schema.get("maxLength")
    text = "Paris".ljust(least, ".") if isinstance(least, int) else "Paris"
    return text[:most] if isinstance(most, int) else text


def _matching(pattern: Any) -> str:
    """Return a text that matches a parsed regular expression without assertions."""
    return "".join(_piece(str(kind), value) for kind, value in pattern)


def _piece(kind: str, value: Any) -> str:
    if kind == "LITERAL":
        return chr(value)
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        return _matching(value[2]) * int(value[0])
    if kind == "SUBPATTERN":
        return _matching(value[3])
    if kind == "BRANCH":
        return _matching(value[1][0])
    if kind == "IN":
        return _one_of(value)
    return "a"


def _one_of(members: Any) -> str:
    kind, value = str(members[0][0]), members[0][1]
    if kind == "LITERAL":
        return chr(value)
    if kind == "RANGE":
        return chr(value[0])
    return {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " "}.get(str(value), "a")


def _resolved(reference: Any, root: Any) -> Any:
    target = root
    for part in str(reference).split("/")[1:]:
        if isinstance(target, Mapping):
            target = target.get(part)
        else:
            target = target[int(part)] if isinstance(target, list) and part.isdecimal() else None
    return target
