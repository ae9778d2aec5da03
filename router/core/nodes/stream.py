"""The stream of a node's views as a front reads it: server-sent events, taken apart. Pure."""

from __future__ import annotations

from router.core.nodes.form import UnreadableForm
from router.core.nodes.view import MOST_VIEW_BYTES

MOST_REST_BYTES = MOST_VIEW_BYTES + 1024
"""The most of an event that has not ended yet."""


class EventReader:
    """Takes apart what arrives. Only `data:` is read: an event is a view, and comments only keep the stream alive."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that are complete now. Raises UnreadableForm for one that is too long."""
        *events, rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > MOST_REST_BYTES:
            raise UnreadableForm(f"an event of more than {MOST_VIEW_BYTES} bytes")
        self._rest = rest
        return [data for event in events if (data := _data(event))]


def _data(event: bytes) -> bytes:
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
