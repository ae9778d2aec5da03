"""The functions of templates, and how Go prints values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote_plus

from ollama_simulator.gojson import dump
from router.core.go.quoting import go_quoted


def is_true(value: Any) -> bool:
    """Whether `if` takes a value for true."""
    return bool(value)


def printed(value: Any) -> str:
    """Return a value as an action prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<no value>"
    if isinstance(value, list):
        return "[" + " ".join(printed(item) for item in value) + "]"
    if isinstance(value, Mapping) and type(value).__str__ is dict.__str__:
        return "map[" + " ".join(f"{key}:{printed(item)}" for key, item in sorted(value.items())) + "]"
    return str(value)


def _slice(value: Any, *bounds: int) -> Any:
    return value[slice(*bounds)] if len(bounds) == 2 else value[bounds[0] :]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _printf(pattern: str, *values: Any) -> str:
    left = iter(values)

    def shown(verb: re.Match[str]) -> str:
        value = next(left, "")
        if verb[1] == "d" and isinstance(value, str):
            return f"%!d(string={value})"
        return go_quoted(value) if verb[1] == "q" and isinstance(value, str) else printed(value)

    return re.sub(r"%([vsdq])", shown, pattern)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
    "not": lambda value: not is_true(value),
    "and": lambda *values: next((value for value in values if not is_true(value)), values[-1]),
    "or": lambda *values: next((value for value in values if is_true(value)), values[-1]),
    "len": len,
    "index": _index,
    "slice": _slice,
    "json": lambda value: dump(value).decode(),
    "html": lambda value: escape(printed(value)),
    "urlquery": lambda value: quote_plus(printed(value)),
    "print": lambda *values: "".join(printed(value) for value in values),
    "printf": _printf,
}
