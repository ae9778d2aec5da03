"""Reads the body of a verbose `/api/show`: only the parts that are used become objects.

Such a body holds the tokenizer: hundreds of thousands of strings that nothing here needs. They are skipped as bytes; of
the vocabulary only the number of entries is taken.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.go.json_keys import NOT_QUICK, quick_elements
from router.core.go.json_volume import count_of
from router.core.ollama.bounded import has_too_many, members, value
from router.core.ollama.show import VOCABULARY

_PARTS = (
    "details", "capabilities", "parameters", "modelfile", "projector_info", "tensors", "remote_model", "remote_host",
)  # fmt: skip
_MAX_PART_BYTES = 4 << 20
_MAX_VALUE_BYTES = 1 << 20
"""Larger ones belong to no model; they are skipped, because their objects would take many times as much memory."""

_MOST_KEYS = 4096
"""Of an object: metadata has about a hundred, and each is looked at on the loop."""

_MOST_KEYS_OF_ALL = 200_000
"""Of the whole answer: each tensor has three."""

_AFTER_KEY = b'":'

UNREADABLE = "unreadable"
"""Stands for a value of the metadata that is not valid or far too large: it is not a number, so it is not a figure."""

_WORDS = msgspec.json.Decoder(list[str])


def read_show(content: bytes) -> dict[str, Any]:
    """Return the used parts of an answer of `/api/show`, with the vocabulary's number of entries in place of its list.

    A part that is not valid or far too large is left out. Raises msgspec.DecodeError if the body is not a JSON object.
    """
    if count_of(content, _AFTER_KEY) > _MOST_KEYS_OF_ALL:
        raise msgspec.DecodeError("too many keys")
    raws = members(content)
    found = {part: _few(_value(raws[part], _MAX_PART_BYTES)) for part in _PARTS if part in raws}
    if "model_info" in raws:
        found["model_info"] = _metadata(raws["model_info"])
    return {part: value for part, value in found.items() if value is not None}


def _metadata(raw: memoryview) -> dict[str, Any]:
    if count_of(raw, _AFTER_KEY) > 4 * _MOST_KEYS:  # some are in the words of a vocabulary
        return {}
    try:
        raws = members(raw)
    except NOT_QUICK:
        return {}
    found = {
        key: _value(value, _MAX_VALUE_BYTES, UNREADABLE)
        for key, value in raws.items()
        if not _is_tokenizers_list(key, value)
    }
    if VOCABULARY in raws:
        found[VOCABULARY] = _entries(raws[VOCABULARY])
    return found


def _is_tokenizers_list(key: str, value: memoryview) -> bool:
    return key.startswith("tokenizer.") and bytes(value[:1]) == b"["


def _entries(raw: memoryview) -> int | None:
    try:
        return sum(1 for _ in quick_elements(_WORDS, raw))
    except NOT_QUICK:  # null without verbose, or not a list of strings
        return None


def _few(value: Any) -> Any:
    return None if isinstance(value, dict) and len(value) > _MOST_KEYS else value


def _value(raw: memoryview, most_bytes: int, otherwise: Any = None) -> Any:
    if len(raw) > most_bytes or has_too_many(raw):
        return otherwise
    try:
        return value(raw)
    except NOT_QUICK:
        return otherwise
