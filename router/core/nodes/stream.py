"""The stream of a node's views as a front reads it: server-sent events, taken apart. Pure."""

from __future__ import annotations

from router.core.nodes.form import UnreadableForm
from router.core.nodes.view import MOST_VIEW_BYTES

MOST_REST_BYTES = MOST_VIEW_BYTES + 1024
"""The most of an event that has not ended yet."""


class EventReader:
    """Takes apart what arrives. Only `data:` is read: an event is a view, and comments only keep the stream alive.

    `has_ended`: what arrived last has ended an event, be it a comment.
    """

    def __init__(self) -> None:
        self.has_ended = False
        self._rest = bytearray()
        self._half = b""  # of the end of a line

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that are complete now. Raises UnreadableForm for one that is too long.

        Only what is new is looked through: a view may arrive byte by byte.
        """
        chunk = self._half + chunk
        self._half = b"\r" if chunk.endswith(b"\r") else b""
        known = max(0, len(self._rest) - 1)
        self._rest += chunk.removesuffix(b"\r").replace(b"\r\n", b"\n")
        self.has_ended = self._rest.find(b"\n\n", known) >= 0
        events: list[bytes] = []
        if self.has_ended:
            *events, rest = bytes(self._rest).split(b"\n\n")
            self._rest = bytearray(rest)
        if len(self._rest) > MOST_REST_BYTES:
            raise UnreadableForm(f"an event of more than {MOST_VIEW_BYTES} bytes")
        return [data for event in events if (data := _data(event))]


def _data(event: bytes) -> bytes:
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
