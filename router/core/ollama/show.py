"""Parse the parts of an `/api/tags` row and an `/api/show` answer from which `model.ModelFacts` is built.

Servers of all versions answer here: a field that is missing or of another type becomes empty, never an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BLOB = re.compile(r"sha256[-:]([0-9a-f]{64})")
_BLOB_COMMANDS = frozenset({"FROM", "ADAPTER", "DRAFT"})


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def details(row: Mapping[str, Any], show: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `details` of both answers. Show wins, because it names a quantization that the manifest calls unknown."""
    known = {key: value for key, value in mapping(show.get("details")).items() if value not in (None, "", "unknown")}
    return {**mapping(row.get("details")), **known}


def without_vocabulary(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return `model_info` without the tokenizer's arrays: megabytes of which only the length is used."""
    return {
        key: value
        for key, value in info.items()
        if not (key.startswith("tokenizer.ggml.") and (value is None or isinstance(value, list)))
    }


def blobs(modelfile: str) -> tuple[str, ...]:
    """Return the blobs of the leading FROM, ADAPTER and DRAFT lines, weights first (server/images.go, Model.String).

    Reading stops at the first other command, because a template or a system text may hold lines that look like these.
    """
    found: list[str] = []
    for line in modelfile.splitlines():
        command = line.split(" ", 1)[0].upper()
        if command in _BLOB_COMMANDS:
            found += [f"sha256-{blob}" for blob in _BLOB.findall(line)[-1:]]
        elif line and not line.startswith("#"):
            break
    return tuple(found)


def parameters(text: str) -> dict[str, Any]:
    """Parse the parameters block of `/api/show`, a name and a Go literal per line; a repeated name becomes a tuple."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, literal = line.strip().partition(" ")
        if name:
            value = _literal(literal.strip())
            found[name] = (*_as_tuple(found[name]), value) if name in found else value
    return found


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _literal(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip('"')
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tensors(rows: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, type and shape of each listed tensor; nothing if the server lists none."""
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping):
            shape = tuple(int(side) for side in row.get("shape") or ())
            yield str(row.get("name", "")), str(row.get("type", "")), shape


def capabilities(row: Mapping[str, Any], show: Mapping[str, Any]) -> frozenset[str]:
    """Return the listed capabilities.

    Before 0.6.4 none are listed: a pooling type then means embedding, else completion.
    """
    listed = show.get("capabilities") or row.get("capabilities")
    if isinstance(listed, list):
        return frozenset(str(word) for word in listed)
    if any(key.endswith(".pooling_type") for key in mapping(show.get("model_info"))):
        return frozenset({"embedding"})
    return frozenset({"completion", "vision"} if show.get("projector_info") else {"completion"})


def count(text: str) -> float:
    """Parse a parameter count as `details` prints it (``8.0B``, ``268.10M``). Return 0 if there is none."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMBT]?)\s*", text.upper())
    try:
        return float(match[1]) * 1000.0 ** " KMBT".index(match[2] or " ") if match else 0.0
    except ValueError:
        return 0.0
