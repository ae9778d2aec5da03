"""The usual body of a generating route, read in one step by msgspec; every other one goes the long way.

A body is usual when each key is spelled as Ollama's own, known here and there once, and each value has the type that it
should have. Nothing is decided here: `read_quick` gives None in any doubt, and `payload.read_request` reads the same
from what is left (a property test holds the two together).
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.json_keys import Members
from router.core.names import GO_SPACE
from router.core.payload_messages import Quick, measure_quick

_MOST_TOKENS = 1 << 31
_QUOTE = ord('"')


class _Chat(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    messages: list[Quick]
    stream: bool = True
    options: dict[str, Any] = {}
    keep_alive: msgspec.Raw = msgspec.Raw()


class _Generate(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: msgspec.Raw
    system: msgspec.Raw = msgspec.Raw(b'""')
    stream: bool = True
    options: dict[str, Any] = {}
    keep_alive: msgspec.Raw = msgspec.Raw()


class _V1Chat(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    messages: list[Quick]
    stream: bool = False
    max_tokens: int | None = None


class Usual(msgspec.Struct):
    """What a usual body asks for: the values that `payload.InferenceRequest` is made of."""

    model: str
    stream: bool
    parts: int
    text_bytes: int
    options: dict[str, Any]
    keep_alive: bytes = b""
    max_tokens: int | None = None


_CHAT = msgspec.json.Decoder(_Chat).decode
_GENERATE = msgspec.json.Decoder(_Generate).decode
_V1_CHAT = msgspec.json.Decoder(_V1Chat).decode
_NO_OPTIONS: dict[str, Any] = {}


def read_quick(kind: str, body: bytes, members: Members) -> Usual | None:
    """What `body` asks for; None where it is not a usual one. `members` are those of `body`."""
    read = _READERS.get(kind)
    if read is None or len(dict(members)) != len(members):
        return None
    try:
        usual = read(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return usual if usual is not None and usual.model.strip(GO_SPACE) and usual.keep_alive != b"null" else None


def _read_chat(body: bytes) -> Usual | None:
    asked = _CHAT(body)
    prompt = measure_quick(asked.messages)
    if prompt is None:
        return None
    return Usual(asked.model, asked.stream, prompt[0], prompt[1], asked.options, bytes(asked.keep_alive))


def _read_generate(body: bytes) -> Usual | None:
    asked = _GENERATE(body)
    prompt, system = memoryview(asked.prompt), memoryview(asked.system)
    if prompt[0] != _QUOTE or system[0] != _QUOTE:
        return None
    is_asking = int(len(prompt) > 2)
    size = len(prompt) - 2 + len(system) - 2
    return Usual(asked.model, asked.stream, is_asking, size, asked.options, bytes(asked.keep_alive))


def _read_v1_chat(body: bytes) -> Usual | None:
    asked = _V1_CHAT(body)
    prompt = measure_quick(asked.messages)
    limit = asked.max_tokens
    if prompt is None or not prompt[0] or (limit is not None and not -_MOST_TOKENS < limit < _MOST_TOKENS):
        return None
    return Usual(asked.model, asked.stream, prompt[0], prompt[1], _NO_OPTIONS, b"", limit)


_READERS = {"chat": _read_chat, "generate": _read_generate, "v1_chat": _read_v1_chat}
