"""Streams as whole lines and events, and whether they ended properly. Pure; fed with chunks, byte-exact.

A stream is relayed by whole lines (NDJSON) or events (SSE), so that an error can follow at any time. Nothing is parsed
on the way unless a name must be replaced; only the last line or event is, when the stream has ended.
"""

from __future__ import annotations

import msgspec

from router.api.endings import UNREADABLE, StreamEnd, counts_of, last_of
from router.api.error_texts import shown_value
from router.api.pieces import changed_where, split_events
from router.api.responses import error_value
from router.core.ollama.routes import Route
from router.errors import UpstreamError
from router.routing.destination import Rename

MOST_BYTES = 64 << 20
"""The longest line or event, if nothing else is configured."""

ENDING_BYTES = 64 << 10
"""How much of the last events is looked at for how a stream has ended, and at least the last one."""

_ERROR = b'"error"'
_encode = msgspec.json.encode
_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


_SSE_ENDS = frozenset(("message_stop", "response.completed", "response.incomplete", "response.failed", "error"))


class Stream:
    """Common part of both framings: buffers the incomplete piece and keeps the last complete one.

    A piece of more than `most_bytes` is given up by an UpstreamError: an upstream must not fill the memory.
    """

    __slots__ = ("_errors", "_held_bytes", "_last", "_most_bytes", "_pending", "_rename", "_route", "_tail")

    separator = b"\n"
    """What usually ends a piece."""

    def __init__(
        self,
        route: Route,
        rename: Rename | None = None,
        errors: Rename | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._route = route
        self._rename = rename
        self._errors = errors or rename
        self._pending: list[bytes] = []
        self._last = self._tail = b""
        self._held_bytes, self._most_bytes = 0, most_bytes

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines or events that `chunk` completes, ready to be sent; b"" if it completes none."""
        if self._pending:
            self._check_held()  # not sooner: what was whole in the last chunk has been passed on by now
            # Join a long line once, when its end has arrived, and not per chunk (quadratic). What ends it may be split
            # over two chunks.
            is_whole = self._end(chunk) or self._end(self._tail + chunk[:2])
            self._hold(chunk)
            if not is_whole:
                return b""
            chunk = b"".join(self._pending)
            self._let_go()
        if not chunk.endswith(self.separator):
            end = self._end(chunk)
            if end < len(chunk):
                self._hold(chunk[end:])
                chunk = chunk[:end]
            if not end:
                return b""
        if len(chunk) > 2 or chunk.strip():  # empty lines after the last one are not the last one
            self._last = chunk
        return self._shown(chunk)

    def _hold(self, part: bytes) -> None:
        self._held_bytes += len(part)
        self._pending.append(part)
        self._tail = part[-2:] if len(part) > 1 else (self._tail + part)[-2:]

    def _check_held(self) -> None:
        if self._held_bytes > self._most_bytes:
            raise UpstreamError(f"the upstream sent a line of more than {self._most_bytes} bytes")

    def _let_go(self) -> None:
        self._pending.clear()
        self._held_bytes, self._tail = 0, b""

    def _end(self, chunk: bytes) -> int:
        """Return where the last whole piece in `chunk` ends, 0 if it completes none."""
        return chunk.rfind(b"\n") + 1

    def rest(self) -> bytes:
        """Return the rest after a clean end: a last line that is complete except for its line break, else b""."""
        self._check_held()
        rest = b"".join(self._pending)
        self._let_go()
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
        last = last_of(line[line.rfind(b"\n") + 1 :])
        ended = last.done or last.status == "success" or last.error is not None
        return StreamEnd(ended, last.prompt_eval_count, last.eval_count)

    def _is_whole(self, rest: bytes) -> bool:
        try:
            _read_object(rest)
        except UNREADABLE:
            return False
        self._last = rest
        return True

    def _renamed(self, piece: bytes) -> bytes:
        assert self._rename is not None
        # Parsing every line of every stream to replace one name would cost more than relaying it.
        old, new = (b'{"model":' + _encode(name.decode()) for name in self._rename)
        first = new + piece[len(old) :] if piece.startswith(old) else piece
        return first.replace(b"\n" + old, b"\n" + new)

    def _with_shown_errors(self, piece: bytes) -> bytes:
        return changed_where(_ERROR, piece, b"\n", lambda line: shown_value(line, self._errors))


class EventStream(Stream):
    """SSE, on `/v1/*`. The model's name may be anywhere in an event, so events that contain one are parsed."""

    __slots__ = ()

    separator = b"\n\n"

    def _end(self, chunk: bytes) -> int:
        plain, with_cr = chunk.rfind(b"\n\n"), chunk.rfind(b"\n\r\n")
        return max(plain + 2 if plain >= 0 else 0, with_cr + 3 if with_cr >= 0 else 0)

    def error(self, message: str, status: int = 502) -> bytes:
        kind = self._route.kind
        if kind == "v1_messages":
            return b"event: error\ndata: " + _encode(error_value(message, status, "anthropic")) + b"\n\n"
        if kind == "v1_responses":
            value = {"type": "error", "code": "server_error", "message": message, "param": None}
            return b"event: error\ndata: " + _encode(value) + b"\n\n"
        return b"data: " + _encode(error_value(message, status, "openai")) + b"\n\n"

    def ending(self) -> StreamEnd:
        last_ones = self._last  # of thousands of tiny ones only the last ones say how it ended
        if len(last_ones) > ENDING_BYTES:
            last_ones = last_ones[self._end(last_ones[:-ENDING_BYTES]) :]
        values = [value for event in split_events(last_ones) if (value := _data(event))]
        if not values:
            return StreamEnd(is_terminated=False)
        last = last_of(values[-1])
        ended = values[-1] == b"[DONE]" or last.type in _SSE_ENDS or last.error is not None
        usage = next((found for value in reversed(values) if (found := last_of(value).usage) is not None), None)
        return StreamEnd(ended, *counts_of(usage))

    def _is_whole(self, rest: bytes) -> bool:
        if _data(rest) != b"[DONE]":
            return False
        self._last = rest
        return True

    def _renamed(self, piece: bytes) -> bytes:
        assert self._rename is not None
        return changed_where(b'"model"', piece, b"\n\n", self._renamed_event)

    def _renamed_event(self, event: bytes) -> bytes:
        assert self._rename is not None
        head, value = split_data(event)
        return head + renamed_json(value, self._rename)

    def _with_shown_errors(self, piece: bytes) -> bytes:
        return changed_where(_ERROR, piece, b"\n\n", self._with_shown_error)

    def _with_shown_error(self, event: bytes) -> bytes:
        head, value = split_data(event)
        return head + shown_value(value, self._errors)


def is_stream(content_type: bytes) -> bool:
    """Return True for the content types of streams (NDJSON and SSE)."""
    return content_type.startswith((b"application/x-ndjson", b"text/event-stream"))


def stream_of(
    content_type: bytes,
    route: Route,
    rename: Rename | None,
    errors: Rename | None = None,
    most_bytes: int = MOST_BYTES,
) -> Stream | None:
    """Return the framing for a content type, None if it is not a stream's."""
    if content_type.startswith(b"application/x-ndjson"):
        return LineStream(route, rename, errors, most_bytes)
    return EventStream(route, rename, errors, most_bytes) if content_type.startswith(b"text/event-stream") else None


def renamed_json(value: bytes, rename: Rename) -> bytes:
    """Return a JSON answer with the model's name replaced and all other members unchanged, byte for byte."""
    body = value.rstrip(b"\r\n")
    old, new = (_encode(name.decode()) for name in rename)
    try:
        members = _read_object(body)
        changed = _rename_in(members, old, new)
    except UNREADABLE:
        return value
    return _encode(members) + value[len(body) :] if changed else value


def _rename_in(members: dict[str, msgspec.Raw], old: bytes, new: bytes) -> bool:
    if "model" in members:
        if bytes(members["model"]) != old:
            return False
        members["model"] = msgspec.Raw(new)
        return True
    for key in ("response", "message"):
        if key in members and bytes(members[key]).startswith(b"{"):
            inner = _read_object(members[key])
            if _rename_in(inner, old, new):
                members[key] = msgspec.Raw(_encode(inner))
                return True
    return False


def split_data(event: bytes) -> tuple[bytes, bytes]:
    """Return an event up to its data, and the data: Ollama sends one line of JSON, last in the event."""
    start = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if not start and not event.startswith(b"data:"):
        return event, b""
    start += len(b"data: ") if event.startswith(b"data: ", start) else len(b"data:")
    return event[:start], event[start:]


def _data(event: bytes) -> bytes:
    """Return the first line of an event's data, b"" if it has none."""
    return split_data(event)[1].partition(b"\n")[0].strip()
