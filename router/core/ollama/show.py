"""Parse the parts of an `/api/tags` row and an `/api/show` answer from which `model.ModelFacts` is built.

Servers of all versions answer here: a field that is missing or of another type becomes empty, never an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from router.core.ollama.figures import MAX_TEXT, ImplausibleFigure, check_shape

VOCABULARY = "tokenizer.ggml.tokens"
"""The key of the vocabulary: a list of its entries, or only their number."""

RUNNER_PARAMETERS = frozenset(
    ("num_ctx", "num_batch", "num_gpu", "num_thread", "main_gpu", "draft_num_predict", "num_keep", "num_predict")
)
_MAX_PARAMETERS, _MAX_VOCABULARY = 1e15, 1 << 26
_MOST_LINES = 4000
"""The most that is read of a list of parameters, and of a Modelfile for its first commands: both are a few lines."""

_MOST_WORDS = 64
"""The most capabilities that are read: Ollama knows eight."""

_FEW_WORDS, _FEW_CHARS = 10, 40
"""Capabilities of a model, and letters of one, that are shared with other models."""

MAX_BYTES = 1 << 60
"""No size is larger: what a server reports beyond it counts as this, which fits nowhere."""

_EMBEDDING, _COMPLETION, _SEEING = map(frozenset, (("embedding",), ("completion",), ("completion", "vision")))

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
        if key != VOCABULARY and not (key.startswith("tokenizer.ggml.") and (value is None or isinstance(value, list)))
    }


def vocabulary(info: Mapping[str, Any]) -> int:
    """Return the number of entries of the vocabulary; 0 if the server did not list it."""
    listed = info.get(VOCABULARY)
    if isinstance(listed, list):
        return len(listed)
    return listed if isinstance(listed, int) and 0 < listed <= _MAX_VOCABULARY else 0


def text(value: Any) -> str:
    """Return `value` if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def size(value: Any) -> int:
    """Return a number of bytes, at most `MAX_BYTES`; 0 for anything but a number from 0."""
    if not isinstance(value, int | float) or not value >= 0:  # NaN is neither
        return 0
    return int(min(value, MAX_BYTES))


def is_remote(*answers: Mapping[str, Any]) -> bool:
    """Return whether one of the answers names a model or a server elsewhere, which then runs the model."""
    return any(text(answer.get(key)) for answer in answers for key in ("remote_model", "remote_host"))


def blobs(modelfile: str, *commands: str) -> tuple[str, ...]:
    """Return the blobs of the leading FROM, ADAPTER and DRAFT lines, weights first (server/images.go, Model.String).

    With `commands` only of these. Reading stops at the first other command, because a template or a system text may
    hold lines that look like these.
    """
    found: list[str] = []
    for line in _lines(modelfile):
        command = line.split(" ", 1)[0].upper()
        if command in _BLOB_COMMANDS:
            found += [f"sha256-{blob}" for blob in _BLOB.findall(line)[-1:] if not commands or command in commands]
        elif line and not line.startswith("#"):
            break
    return tuple(found)


def parameters(text: str) -> dict[str, Any]:
    """Parse the parameters block of `/api/show`, a name and a Go literal per line; a repeated name becomes a tuple.

    An option of the runner that is not a 32-bit number is left out, as if the Modelfile did not name it.
    """
    found: dict[str, list[Any]] = {}
    for line in _lines(text):
        name, _, literal = line.strip().partition(" ")
        if name:
            value = _literal(literal.strip())
            if name in RUNNER_PARAMETERS and not _is_int32(value):
                continue
            found.setdefault(name, []).append(value)
    return {name: tuple(values) if len(values) > 1 else values[0] for name, values in found.items()}


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in text.split("\n", _MOST_LINES)[:_MOST_LINES]]


def _is_int32(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 31) <= value < 1 << 31


def _literal(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip('"')
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tensors(rows: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, type and shape of each listed tensor; nothing if the server lists none.

    Raises ImplausibleFigure for a tensor that cannot be: one that is left out would make the model seem smaller.
    """
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping):
            name, kind = row.get("name", ""), row.get("type", "")
            if not isinstance(name, str) or not isinstance(kind, str):
                raise ImplausibleFigure("a tensor's name or type is not text")
            if max(len(name), len(kind)) > MAX_TEXT:
                raise ImplausibleFigure(f"the name or type of tensor {name[:80]} is too long")
            yield name, kind, check_shape(name, row.get("shape"))


def capabilities(row: Mapping[str, Any], show: Mapping[str, Any]) -> frozenset[str]:
    """Return the listed capabilities.

    Before 0.6.4 none are listed: a pooling type then means embedding, else completion.
    """
    listed = show.get("capabilities") or row.get("capabilities")
    if isinstance(listed, list):
        words = frozenset(str(word) for word in listed[:_MOST_WORDS])
        return _shared(words) if len(words) <= _FEW_WORDS and max(map(len, words), default=0) <= _FEW_CHARS else words
    if any(key.endswith(".pooling_type") for key in mapping(show.get("model_info"))):
        return _EMBEDDING
    return _SEEING if show.get("projector_info") else _COMPLETION


@lru_cache(maxsize=256)
def _shared(words: frozenset[str]) -> frozenset[str]:
    """Return the first set that was equal to this one: thousands of models have the same few capabilities."""
    return words


def count(text: str) -> float:
    """Parse a parameter count as `details` prints it (``8.0B``, ``268.10M``). Return 0 if there is none."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMBT]?)\s*", text.upper())
    try:
        found = float(match[1]) * 1000.0 ** " KMBT".index(match[2] or " ") if match else 0.0
    except ValueError:
        return 0.0
    return found if found <= _MAX_PARAMETERS else 0.0
