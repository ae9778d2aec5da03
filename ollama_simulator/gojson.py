"""JSON bodies as Python values, read by the types of `router/core/go`, and JSON as Go's json.Marshal writes it."""

from __future__ import annotations

import json
import re
from typing import Any

from router.core.go.json_keys import elements, first_value, kind_of, read_text, split
from router.core.go.types import Struct, read_alone
from router.errors import BadRequest

_INTEGER = re.compile("-?[0-9]{1,309}")  # longer ones exceed a float64
_MOST_NESTED = 400
_BRACKETS = re.compile(rb'[][{}]|"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_HTML_PATTERN = re.compile("[<>&\u2028\u2029]")


def bind(body: bytes, wanted: Struct) -> dict[str, Any]:
    """Return the fields that a request body sets, as gin's ShouldBindJSON reads them. Raises BadRequest with Go's text.

    A field that the body leaves out is absent from the result, so that "absent" and "zero" differ.
    """
    view = first_value(body)
    found: dict[str, Any] = value_of(read_alone(wanted, view, kind_of(view)))
    return found


def parse(body: bytes) -> Any:
    """Return the first JSON value of `body`; what follows is ignored. Raises BadRequest with Go's text."""
    return value_of(first_value(body))


def value_of(found: Any) -> Any:
    """`found` with every view of JSON in it decoded to a Python value. The last of duplicate keys wins."""
    if isinstance(found, memoryview) and _is_too_deep(found):
        raise BadRequest("exceeded max depth")
    try:
        return _value_of(found)
    except RecursionError:
        raise BadRequest("exceeded max depth") from None


def _is_too_deep(view: memoryview) -> bool:
    """Return whether a value is nested deeper than Python recurses. In one pass: each level would be one otherwise."""
    text = bytes(view)
    if text.count(b"[") + text.count(b"{") <= _MOST_NESTED:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
        if depth > _MOST_NESTED:
            return True
    return False


def _value_of(found: Any) -> Any:
    if isinstance(found, memoryview):
        return _decoded(found)
    if isinstance(found, dict):
        return {key: _value_of(item) for key, item in found.items()}
    if isinstance(found, list):
        return [_value_of(item) for item in found]
    return found


def _decoded(view: memoryview) -> Any:
    kind = kind_of(view)
    if kind == "string":
        return read_text(view)
    if kind == "object":
        return {key: _decoded(item) for key, item in split(view)}
    if kind == "array":
        return [_decoded(item) for item in elements(view)]
    if kind == "number":
        text = bytes(view).decode()
        return int(text) if _INTEGER.fullmatch(text) else float(text)
    return {"t": True, "f": False}.get(chr(view[0]))


def dump(value: Any) -> bytes:
    """`value` as json.Marshal writes it: compact, UTF-8, `<`, `>` and `&` escaped."""
    text = json_text(value)
    text = text.replace("\\b", "\\u0008").replace("\\f", "\\u000c") if "\\b" in text or "\\f" in text else text
    return _HTML_PATTERN.sub(lambda match: _HTML[match[0]], text).encode("utf-8", "replace")


def json_text(value: Any) -> str:
    """Compact JSON for text inside a response: nothing is escaped that JSON does not require."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
