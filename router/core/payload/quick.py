"""Fast path: the common body of a generating route, read in one step by msgspec. Every other body takes the slow path.

A body is common if each key is spelled like Ollama's own, is known here and occurs once, and each value has the type
that it should have; and if it is short enough for one step. A key occurs twice if its quoted text does: within a value
its quotes would be escaped, so a false alarm is possible (a value that equals the key), a missed duplicate is not.

Nothing is decided here: in any doubt `read_quick` returns None, and `read.read_request` reads the body by its rules. A
property test compares the two paths.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.go.json_keys import LONG_BYTES, MOST_KEYS, NOT_QUICK
from router.core.go.quoting import GO_SPACE
from router.core.payload.messages import Prompt, quick_prompt
from router.core.payload.values import SHORT_BYTES

COPIED_BYTES = 16 << 10
_MOST_TOKENS = 1 << 31
_QUOTE = ord('"')
_ABSENT = msgspec.Raw()
_NO_TEXT = msgspec.Raw(b'""')
# Escapes of ASCII letters: a second spelling of a key that uses them would not be detected.
_HIDDEN = (b"\\u004", b"\\u005", b"\\u006", b"\\u007")


class Plain(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A native body split for `rewrite`.

    `options` are its options as sent, `option_values` the same decoded; `rest` is everything else except its model and
    its keep_alive, ready to be joined.
    """

    options: bytes | memoryview
    option_values: dict[str, Any]
    rest: tuple[bytes | memoryview, ...]


class QuickRequest(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a body asks for on the fast path: the values from which `read.InferenceRequest` is built."""

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


def read_quick(kind: str, body: bytes) -> QuickRequest | None:
    """Return what `body` asks for; None if it must take the slow path."""
    read = _READERS.get(kind)
    if read is None or len(body) > LONG_BYTES or (b"\\u00" in body and any(map(body.__contains__, _HIDDEN))):
        return None
    try:
        found = read(body)
    except NOT_QUICK:
        return None
    return found if found is not None and found.model.strip(GO_SPACE) and found.keep_alive != b"null" else None


def _read_chat(body: bytes) -> QuickRequest | None:
    asked = _CHAT(body)
    prompt = quick_prompt(asked.messages)
    if prompt is None or body.count(b'"messages"') > 1 or body.count(b'"options"') > 1:
        return None
    rest: tuple[bytes | memoryview, ...] = (b',"messages":', _joinable(asked.messages), *_STREAM[asked.stream])
    return _native(asked, prompt, rest)


def _read_generate(body: bytes) -> QuickRequest | None:
    asked = _GENERATE(body)
    prompt, system = _joinable(asked.prompt), _joinable(asked.system)
    if prompt[0] != _QUOTE or system[0] != _QUOTE or body.count(b'"options"') > 1:
        return None
    rest: tuple[bytes | memoryview, ...] = (b',"prompt":', prompt, *_STREAM[asked.stream])
    if asked.system is not _NO_TEXT:
        rest = (*rest, b',"system":', system)
    return _native(asked, Prompt(int(len(prompt) > 2), len(prompt) - 2 + len(system) - 2), rest)


def _native(asked: _Native, prompt: Prompt, rest: tuple[bytes | memoryview, ...]) -> QuickRequest | None:
    options = _joinable(asked.options)
    if len(options) > SHORT_BYTES:  # there may be very many
        return None
    values = _OPTIONS(options) if options else _NO_OPTIONS
    if len(values) > MOST_KEYS:
        return None
    plain = Plain(options, values, rest)
    return QuickRequest(asked.model, asked.stream is not False, prompt, values, bytes(asked.keep_alive), None, plain)


def _joinable(value: msgspec.Raw) -> bytes | memoryview:
    """Return a value for a join: a short one as a copy, which takes less time than to look at it in its place."""
    view = memoryview(value)
    return bytes(view) if len(view) <= COPIED_BYTES else view


def _read_v1_chat(body: bytes) -> QuickRequest | None:
    asked = _V1_CHAT(body)
    prompt = quick_prompt(asked.messages)
    limit = asked.max_tokens
    if prompt is None or not prompt.parts or (limit is not None and not -_MOST_TOKENS < limit < _MOST_TOKENS):
        return None
    if body.count(b'"messages"') > 1:
        return None
    return QuickRequest(asked.model, asked.stream, prompt, _NO_OPTIONS, b"", limit)


_READERS = {"chat": _read_chat, "generate": _read_generate, "v1_chat": _read_v1_chat}
