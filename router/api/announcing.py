"""Puts one line of the router's in front of the text of an answer: a line or event more in a stream, else in its text.

Everything that the upstream sends in a stream stays as it is, so counts and last lines are Ollama's own. An answer
without text (a load, an error, calls of tools) gets no line. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.api.endings import UNREADABLE, StreamEnd
from router.api.pieces import split_events
from router.api.streams import Stream, split_data

Object = dict[str, msgspec.Raw]

_read_object = msgspec.json.Decoder(Object).decode
_read_choices = msgspec.json.Decoder(list[Object]).decode
_read_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode
_NOTHING = msgspec.Raw(b'""')
_ASSISTANT = msgspec.Raw(b'"assistant"')


class Announced:
    """A stream whose text begins with a line; `kind` is that of the route."""

    __slots__ = ("_kind", "_line", "_stream")

    def __init__(self, stream: Stream, kind: str, line: str) -> None:
        self._stream, self._kind, self._line = stream, kind, line

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` completes, as the stream does, with the line in front of the first text."""
        whole = self._stream.feed(chunk)
        return self._announced(whole) if whole and self._line else whole

    def rest(self) -> bytes:
        """Return the rest after a clean end."""
        return self._announced(rest) if (rest := self._stream.rest()) and self._line else rest

    def error(self, message: str, status: int = 502) -> bytes:
        """Return the line or event that reports a failure."""
        return self._stream.error(message, status)

    def ending(self) -> StreamEnd:
        """Return how the stream ended."""
        return self._stream.ending()

    def _announced(self, piece: bytes) -> bytes:
        parts = split_events(piece) if self._kind == "v1_chat" else piece.splitlines(keepends=True)
        for at, part in enumerate(parts):
            value = split_data(part)[1] if self._kind == "v1_chat" else part
            if (own := _own_value(self._kind, value, self._line)) is not None:
                self._line = ""
                own = b"data: " + own + b"\n\n" if self._kind == "v1_chat" else own + b"\n"
                return b"".join([*parts[:at], own, *parts[at:]])
        return piece


def announced_body(body: bytes, kind: str, line: str) -> bytes:
    """Return an unstreamed answer whose text begins with the line; unchanged if it has no text."""
    try:
        whole = _read_object(body)
        if kind == "generate":
            changed = _with_line(whole, "response", line)
        elif kind == "chat":
            changed = _within(whole, "message", line)
        else:
            choices = _read_choices(whole["choices"])
            changed = bool(choices) and _within(choices[0], "message", line)
            whole["choices"] = msgspec.Raw(_encode(choices))
    except (*UNREADABLE, KeyError):
        return body
    return _encode(whole) if changed else body


def _within(outer: Object, key: str, line: str) -> bool:
    inner = _read_object(outer[key])
    changed = _with_line(inner, "content", line)
    outer[key] = msgspec.Raw(_encode(inner))
    return changed


def _with_line(members: Object, key: str, line: str) -> bool:
    """Put the line in front of the text of `key`; return False if there is none."""
    text = _read_text(members.get(key, _NOTHING))
    if not text:
        return False
    members[key] = msgspec.Raw(_encode(f"{line}\n\n{text}"))
    return True


def _own_value(kind: str, value: bytes, line: str) -> bytes | None:
    """Return the value to send in front of `value` of a stream, None if that has no text yet."""
    try:
        found = _read_object(value)
        if not _has_text(kind, found):
            return None
    except (*UNREADABLE, KeyError):
        return None
    text = msgspec.Raw(_encode(f"{line}\n\n"))
    said = {"role": _ASSISTANT, "content": text}
    kept: tuple[str, ...] = ("model", "created_at")
    own: dict[str, Any]
    if kind == "v1_chat":
        kept = ("id", "object", "created", "model", "system_fingerprint")
        own = {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}
    else:
        own = {"response": text} if kind == "generate" else {"message": said}
        own["done"] = False
    return _encode({**{key: found[key] for key in kept if key in found}, **own})


def _has_text(kind: str, found: Object) -> bool:
    if kind == "generate":
        return bool(_read_text(found.get("response", _NOTHING)))
    if kind == "chat":
        return bool(_read_text(_read_object(found["message"]).get("content", _NOTHING)))
    choices = _read_choices(found["choices"])
    return bool(choices) and bool(_read_text(_read_object(choices[0]["delta"]).get("content", _NOTHING)))
