"""Streams as whole lines and events, and whether they ended properly. Pure; fed with chunks, byte-exact.

A stream is relayed by whole lines (NDJSON) or events (SSE), so that an error can follow at any time. Nothing is parsed
on the way unless a name must be replaced; only the last line or event is, when the stream has ended.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.api.error_texts import shown_value
from router.api.responses import error_value
from router.core.ollama.routes import Route
from router.routing.destination import Rename

_ERROR = b'"error"'
_encode = msgspec.json.encode


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Last(msgspec.Struct):
    """The fields of an answer's last value that are read."""

    done: bool = False
    status: str = ""
    error: Any = None
    type: str = ""
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    usage: _Usage | None = None


_read_last = msgspec.json.Decoder(_Last).decode
_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_SSE_ENDS = frozenset(("message_stop", "response.completed", "response.incomplete", "response.failed", "error"))


class StreamEnd(msgspec.Struct, frozen=True):
    """How a stream ended: `is_terminated` if by a proper last line or event, or an error; and its token counts."""

    is_terminated: bool
    tokens_in: int | None = None
    tokens_out: int | None = None


class Stream:
    """Common part of both framings: buffers the incomplete piece and keeps the last complete one."""

    __slots__ = ("_errors", "_last", "_pending", "_rename", "_route")

    separator = b"\n"

    def __init__(self, route: Route, rename: Rename | None = None, errors: Rename | None = None) -> None:
        self._route = route
        self._rename = rename
        self._errors = errors or rename
        self._pending: list[bytes] = []
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines or events that `chunk` completes, ready to be sent; b"" if it completes none."""
        separator = self.separator
        if self._pending:
            # Join a long line once, when its end has arrived, and not per chunk (quadratic). The separator may be split
            # over two chunks.
            is_whole = separator in chunk or separator in self._pending[-1][-1:] + chunk[:1]
            self._pending.append(chunk)
            if not is_whole:
                return b""
            chunk = b"".join(self._pending)
            self._pending.clear()
        if not chunk.endswith(separator):
            end = chunk.rfind(separator) + len(separator)
            if end < len(separator):
                self._pending.append(chunk)
                return b""
            self._pending.append(chunk[end:])
            chunk = chunk[:end]
        self._last = chunk
        return self._shown(chunk)

    def rest(self) -> bytes:
        """Return the rest after a clean end: a last line that is complete except for its line break, else b""."""
        rest = b"".join(self._pending)
        self._pending.clear()
        return self._shown(rest) if rest and self._is_whole(rest) else b""

    def error(self, message: str, status: int = 502) -> bytes:
        """Return the line or event that reports a failure. The buffered part of an incomplete piece is not sent."""
        raise NotImplementedError

    def ending(self) -> StreamEnd:
        """Return how the stream ended, by its last complete piece."""
        raise NotImplementedError

    def _shown(self, piece: bytes) -> bytes:
        """Return whole lines or events with the names that the client is to see."""
        if self._rename is not None:
            piece = self._renamed(piece)
        return self._with_shown_errors(piece) if _ERROR in piece else piece

    def _renamed(self, piece: bytes) -> bytes:
        raise NotImplementedError

    def _with_shown_errors(self, piece: bytes) -> bytes:
        raise NotImplementedError

    def _is_whole(self, rest: bytes) -> bool:
        raise NotImplementedError


class LineStream(Stream):
    """NDJSON, on `/api/*`. The model's name is the first key of a line (recorded), so it is replaced as a prefix."""

    __slots__ = ()

    def error(self, message: str, status: int = 502) -> bytes:
        return _encode(error_value(message, status, "ollama")) + b"\n"

    def ending(self) -> StreamEnd:
        line = self._last.rstrip(b"\n")
        last = _last(line[line.rfind(b"\n") + 1 :])
        ended = last.done or last.status == "success" or last.error is not None
        return StreamEnd(ended, last.prompt_eval_count, last.eval_count)

    def _is_whole(self, rest: bytes) -> bool:
        try:
            _read_object(rest)
        except msgspec.DecodeError:
            return False
        self._last = rest
        return True

    def _renamed(self, piece: bytes) -> bytes:
        assert self._rename is not None
        # Parsing every line of every stream to replace one name would cost more than relaying it.
        old, new = (b'{"model":' + _encode(name.decode()) for name in self._rename)
        lines = piece.split(b"\n")
        return b"\n".join(new + line[len(old) :] if line.startswith(old) else line for line in lines)

    def _with_shown_errors(self, piece: bytes) -> bytes:
        return b"\n".join(shown_value(line, self._errors) for line in piece.split(b"\n"))


class EventStream(Stream):
    """SSE, on `/v1/*`. The model's name may be anywhere in an event, so events that contain one are parsed."""

    __slots__ = ()

    separator = b"\n\n"

    def error(self, message: str, status: int = 502) -> bytes:
        kind = self._route.kind
        if kind == "v1_messages":
            return b"event: error\ndata: " + _encode(error_value(message, status, "anthropic")) + b"\n\n"
        if kind == "v1_responses":
            value = {"type": "error", "code": "server_error", "message": message, "param": None}
            return b"event: error\ndata: " + _encode(value) + b"\n\n"
        return b"data: " + _encode(error_value(message, status, "openai")) + b"\n\n"

    def ending(self) -> StreamEnd:
        events = [event for event in self._last.split(b"\n\n") if event]
        values = [_data(event) for event in events]
        if not values:
            return StreamEnd(is_terminated=False)
        last = _last(values[-1])
        ended = values[-1] == b"[DONE]" or last.type in _SSE_ENDS or last.error is not None
        usage = next((found for value in reversed(values) if (found := _last(value).usage) is not None), None)
        return StreamEnd(ended, *_counts(usage))

    def _is_whole(self, rest: bytes) -> bool:
        if _data(rest) != b"[DONE]":
            return False
        self._last = rest
        return True

    def _renamed(self, piece: bytes) -> bytes:
        assert self._rename is not None
        events = piece.split(b"\n\n")
        return b"\n\n".join(self._renamed_event(event) if b'"model"' in event else event for event in events)

    def _renamed_event(self, event: bytes) -> bytes:
        assert self._rename is not None
        head, value = _split_data(event)
        return head + renamed_json(value, self._rename)

    def _with_shown_errors(self, piece: bytes) -> bytes:
        return b"\n\n".join(self._with_shown_error(event) for event in piece.split(b"\n\n"))

    def _with_shown_error(self, event: bytes) -> bytes:
        head, value = _split_data(event)
        return head + shown_value(value, self._errors)


def is_stream(content_type: bytes) -> bool:
    """Return True for the content types of streams (NDJSON and SSE)."""
    return content_type.startswith((b"application/x-ndjson", b"text/event-stream"))


def stream_of(content_type: bytes, route: Route, rename: Rename | None, errors: Rename | None = None) -> Stream | None:
    """Return the framing for a content type, None if it is not a stream's."""
    if content_type.startswith(b"application/x-ndjson"):
        return LineStream(route, rename, errors)
    return EventStream(route, rename, errors) if content_type.startswith(b"text/event-stream") else None


def renamed_json(value: bytes, rename: Rename) -> bytes:
    """Return a JSON answer with the model's name replaced and all other members unchanged, byte for byte."""
    body = value.rstrip(b"\n")
    try:
        members = _read_object(body)
        changed = _rename_in(members, rename)
    except msgspec.DecodeError:
        return value
    return _encode(members) + value[len(body) :] if changed else value


def body_ending(body: bytes) -> StreamEnd:
    """Return the token counts of an unstreamed answer."""
    last = _last(body)
    if last.usage is not None:
        return StreamEnd(True, *_counts(last.usage))
    return StreamEnd(True, last.prompt_eval_count, last.eval_count)


def _rename_in(members: dict[str, msgspec.Raw], rename: Rename) -> bool:
    old, new = (_encode(name.decode()) for name in rename)
    if "model" in members:
        if bytes(members["model"]) != old:
            return False
        members["model"] = msgspec.Raw(new)
        return True
    for key in ("response", "message"):
        if key in members and bytes(members[key]).startswith(b"{"):
            inner = _read_object(members[key])
            if _rename_in(inner, rename):
                members[key] = msgspec.Raw(_encode(inner))
                return True
    return False


def _split_data(event: bytes) -> tuple[bytes, bytes]:
    """Return an event up to its data, and the data: Ollama sends one line of JSON, last in the event."""
    start = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if not start and not event.startswith(b"data:"):
        return event, b""
    start += len(b"data: ") if event.startswith(b"data: ", start) else len(b"data:")
    return event[:start], event[start:]


def _data(event: bytes) -> bytes:
    return next((line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")), b"")


def _last(value: bytes) -> Any:
    try:
        return _read_last(value)
    except (msgspec.DecodeError, RecursionError):
        return _Last()


def _counts(usage: _Usage | None) -> tuple[int | None, int | None]:
    if usage is None:
        return None, None
    tokens_in = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    return tokens_in, usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
