"""Reads the body of a verbose `/api/show`: only the parts that are used become objects.

Such a body holds the tokenizer: hundreds of thousands of strings that nothing here needs. They are skipped as bytes; of
the vocabulary only the number of entries is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from router.core.ollama.bounded import has_too_many
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

_RAWS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WORDS = msgspec.json.Decoder(list[str])
_ANY = msgspec.json.Decoder()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_show(content: bytes) -> dict[str, Any]:
    """Return the used parts of an answer of `/api/show`, with the vocabulary's number of entries in place of its list.

    A part that is not valid or far too large is left out. Raises msgspec.DecodeError if the body is not a JSON object.
    """
    if content.count(_AFTER_KEY) > _MOST_KEYS_OF_ALL:
        raise msgspec.DecodeError("too many keys")
    try:
        raws = _RAWS.decode(content)
    except (UnicodeDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError("not a readable JSON object") from exc
    found = {part: _few(_value(raws[part], _MAX_PART_BYTES)) for part in _PARTS if part in raws}
    if "model_info" in raws:
        found["model_info"] = _metadata(raws["model_info"])
    return {part: value for part, value in found.items() if value is not None}


def _metadata(raw: msgspec.Raw) -> dict[str, Any]:
    if bytes(raw).count(_AFTER_KEY) > 4 * _MOST_KEYS:  # some are in the words of a vocabulary
        return {}
    try:
        raws: Mapping[str, msgspec.Raw] = _RAWS.decode(raw)
    except _UNREADABLE:
        return {}
    if len(raws) > _MOST_KEYS:
        return {}
    found = {
        key: _value(value, _MAX_VALUE_BYTES, UNREADABLE)
        for key, value in raws.items()
        if not _is_tokenizers_list(key, value)
    }
    if VOCABULARY in raws:
        found[VOCABULARY] = _entries(raws[VOCABULARY])
    return found


def _is_tokenizers_list(key: str, value: msgspec.Raw) -> bool:
    return key.startswith("tokenizer.") and bytes(memoryview(value)[:1]) == b"["


def _entries(raw: msgspec.Raw) -> int | None:
    try:
        return len(_WORDS.decode(raw))
    except _UNREADABLE:  # null without verbose, or not a list of strings
        return None


def _few(value: Any) -> Any:
    return None if isinstance(value, dict) and len(value) > _MOST_KEYS else value


def _value(raw: msgspec.Raw, most_bytes: int, otherwise: Any = None) -> Any:
    content = memoryview(raw)
    if len(content) > most_bytes or has_too_many(content):
        return otherwise
    try:
        return _ANY.decode(raw)
    except _UNREADABLE:
        return otherwise
