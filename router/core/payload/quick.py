"""The usual body of a generating route, read in one step by msgspec; every other one goes the long way.

A body is usual when each key is spelled as Ollama's own, known here and there once, and each value has the type that it
should have. A key that is there twice shows as its quoted text being there twice: within a value its quotes would be
escaped, so a false alarm is possible (a value that reads so), a missed one is not.

Nothing is decided here: `read_quick` gives None in any doubt, and `payload.read_request` reads the same by its rules (a
property test holds the two together).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from router.core.go.quoting import GO_SPACE
from router.core.payload.messages import Prompt, quick_prompt

_MOST_TOKENS = 1 << 31
_QUOTE = ord('"')
_ABSENT = msgspec.Raw()
_NO_TEXT = msgspec.Raw(b'""')
# The escapes of ASCII letters, in which a key could be written a second time without being seen.
_HIDDEN = (b"\\u004", b"\\u005", b"\\u006", b"\\u007")


class Plain(NamedTuple):
    """A native body cut for `rewrite`: its options as they came and their keys, and all else but its model and its
    keep_alive, ready to be joined."""

    options: memoryview
    given: dict[str, Any]
    rest: tuple[bytes | memoryview, ...]


class Usual(NamedTuple):
    """What a usual body asks for: the values that `payload.InferenceRequest` is made of."""

    model: str
    stream: bool
    prompt: Prompt
    options: dict[str, Any]
    keep_alive: bytes = b""
    max_tokens: int | None = None
    plain: Plain | None = None


class _Native(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    stream: bool | msgspec.UnsetType = msgspec.UNSET
    options: msgspec.Raw = _ABSENT
    keep_alive: msgspec.Raw = _ABSENT


class _Chat(_Native, kw_only=True):
    messages: msgspec.Raw


class _Generate(_Native, kw_only=True):
    prompt: msgspec.Raw
    system: msgspec.Raw = _NO_TEXT


class _V1Chat(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    messages: msgspec.Raw
    stream: bool = False
    max_tokens: int | None = None


_CHAT = msgspec.json.Decoder(_Chat).decode
_GENERATE = msgspec.json.Decoder(_Generate).decode
_V1_CHAT = msgspec.json.Decoder(_V1Chat).decode
_OPTIONS = msgspec.json.Decoder(dict[str, Any]).decode
_NO_OPTIONS: dict[str, Any] = {}
_STREAM: dict[object, tuple[bytes, ...]] = {
    msgspec.UNSET: (),
    True: (b',"stream":true',),
    False: (b',"stream":false',),
}


def read_quick(kind: str, body: bytes) -> Usual | None:
    """What `body` asks for; None where it is not a usual one."""
    read = _READERS.get(kind)
    if read is None or (b"\\u00" in body and any(escape in body for escape in _HIDDEN)):
        return None
    try:
        usual = read(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return usual if usual is not None and usual.model.strip(GO_SPACE) and usual.keep_alive != b"null" else None


def _read_chat(body: bytes) -> Usual | None:
    asked = _CHAT(body)
    prompt = quick_prompt(asked.messages)
    if prompt is None or body.count(b'"messages"') > 1 or body.count(b'"options"') > 1:
        return None
    rest: tuple[bytes | memoryview, ...] = (b',"messages":', memoryview(asked.messages), *_STREAM[asked.stream])
    return _native(asked, prompt, rest)


def _read_generate(body: bytes) -> Usual | None:
    asked = _GENERATE(body)
    prompt, system = memoryview(asked.prompt), memoryview(asked.system)
    if prompt[0] != _QUOTE or system[0] != _QUOTE or body.count(b'"options"') > 1:
        return None
    rest: tuple[bytes | memoryview, ...] = (b',"prompt":', prompt, *_STREAM[asked.stream])
    if asked.system is not _NO_TEXT:
        rest = (*rest, b',"system":', system)
    return _native(asked, Prompt(int(len(prompt) > 2), len(prompt) - 2 + len(system) - 2), rest)


def _native(asked: _Native, prompt: Prompt, rest: tuple[bytes | memoryview, ...]) -> Usual:
    options = memoryview(asked.options)
    given = _OPTIONS(options) if options else _NO_OPTIONS
    plain = Plain(options, given, rest)
    return Usual(asked.model, asked.stream is not False, prompt, given, bytes(asked.keep_alive), None, plain)


def _read_v1_chat(body: bytes) -> Usual | None:
    asked = _V1_CHAT(body)
    prompt = quick_prompt(asked.messages)
    limit = asked.max_tokens
    if prompt is None or not prompt.parts or (limit is not None and not -_MOST_TOKENS < limit < _MOST_TOKENS):
        return None
    if body.count(b'"messages"') > 1:
        return None
    return Usual(asked.model, asked.stream, prompt, _NO_OPTIONS, b"", limit)


_READERS = {"chat": _read_chat, "generate": _read_generate, "v1_chat": _read_v1_chat}
