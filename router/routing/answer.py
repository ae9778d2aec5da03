"""The dispatcher's output: an answer, and how it was released. Data only."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router.core.teams.quotas import Standing
from router.http.client.response import UpstreamResponse
from router.http.headers import Header
from router.routing.destination import Rename


class Released(msgspec.Struct, gc=False):
    """How sending an answer ended. Token counts are None if the answer holds none; `phase` is where a client left."""

    outcome: str
    sent_bytes: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    phase: str = ""
    error: str = ""


class Answer(msgspec.Struct):
    """The upstream's answer for the client.

    `headers` are the `X-Router-*` headers; `lines` are the same, rendered, if they are. `rename` is
    (name in the stream, name to show), for derived tags; `errors` the same for the texts of errors. `release` is
    idempotent and must be called on every exit path. `limits_left` as in the call. `announce` is a line to put in front
    of its text, "" for none. `is_for_front`: the headers tell a front by what it was served.
    """

    status: int
    headers: list[Header]
    upstream: UpstreamResponse
    rename: Rename | None = None
    errors: Rename | None = None
    lines: bytes = b""
    limits_left: Standing | None = None
    announce: str = ""
    on_release: Callable[[Released], None] | None = None
    is_for_front: bool = False

    def release(
        self,
        outcome: str,
        *,
        sent_bytes: int = 0,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        error: str = "",
    ) -> None:
        """Release the connection and the resident; `outcome` is how sending the answer ended."""
        on_release, self.on_release = self.on_release, None
        self.upstream.close()  # first, so that Ollama stops before the resident counts as idle
        if on_release is not None:
            on_release(Released(outcome, sent_bytes, tokens_in, tokens_out, "", error))
