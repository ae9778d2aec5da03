"""What goes into the dispatcher and what comes out of it: a call, its answer, how it was released. No story here."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import msgspec

from router.core.ollama.names import key_of
from router.core.ollama.routes import Route
from router.core.payload.read import InferenceRequest
from router.http.client.response import UpstreamRequest, UpstreamResponse

NothingFits = Literal["refuse", "wait", "allow_partial", "passthrough"]
Header = tuple[bytes, bytes]

_LONGEST_NAME = 512  # of a requested model whose headers are remembered


class Call(msgspec.Struct):
    """One inference request as the edge has read it. `headers` are those that may go upstream (E6). `is_gone` says of a
    request that was cancelled whether its client has left. The rest is noted by the dispatcher: the model that it was
    sent to (`served`) and why; how long it waited for that, and where it is (`phase`: queued, before_answer).

    A struct, like the others here: one is built for every request, and a dataclass costs three times as much.
    """

    route: Route
    request: InferenceRequest
    body: bytes
    headers: list[Header] = []
    request_id: str = ""
    team: str = "default"
    strict: bool = False
    nothing_fits: NothingFits | None = None
    is_gone: Callable[[], bool] = bool  # False; the edge knows better
    served: str = ""
    reason: str = ""
    queue_s: float = 0.0
    phase: str = "before_answer"

    def upstream(self, body: bytes) -> UpstreamRequest:
        """The request to send upstream, with `body`."""
        return UpstreamRequest(self.route.method_bytes, self.route.target, self.headers, body, len(body))


class Released(msgspec.Struct):
    """How sending an answer ended; token counts where the answer told them. `phase`: where a client left."""

    outcome: str
    sent_bytes: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    phase: str = ""
    error: str = ""


class Answer(msgspec.Struct):
    """What to send to the client: the upstream's answer, or `body` where `upstream` is None.

    `headers` are the `X-Router-*` ones; `lines` are the same ready to be sent, where that was worth while. `rename` is
    (name in the stream, name to show), for derived tags. `release`
    is idempotent and must be called on every exit path.
    """

    status: int
    headers: list[Header]
    upstream: UpstreamResponse | None
    body: bytes = b""
    content_type: bytes = b"application/json; charset=utf-8"
    rename: tuple[bytes, bytes] | None = None
    lines: bytes = b""
    on_release: Callable[[Released], None] | None = None

    def release(
        self,
        outcome: str,
        *,
        sent_bytes: int = 0,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        error: str = "",
    ) -> None:
        """Give back the connection and the place at the resident; `outcome` says how the relay ended."""
        on_release, self.on_release = self.on_release, None
        if self.upstream is not None:
            self.upstream.close()
        if on_release is not None:
            on_release(Released(outcome, sent_bytes, tokens_in, tokens_out, "", error))


def spelled(requested: str, variant: str) -> str:
    """The variant's name, in the client's own spelling where that names the same model."""
    return requested if requested == variant or key_of(requested) == key_of(variant) else variant


def router_headers(requested: str, variant: str, reason: str, queue_s: float, backend: str) -> list[Header]:
    """The `X-Router-*` headers of an answer."""
    fixed = _fixed_headers if len(requested) <= _LONGEST_NAME else _fixed_headers.__wrapped__
    return [*fixed(requested, variant, reason, backend), (b"x-router-queue-ms", b"%d" % (queue_s * 1000))]


def header_lines(headers: list[Header]) -> bytes:
    """Headers as they are sent."""
    return b"".join(b"%b: %b\r\n" % pair for pair in headers)


@lru_cache(maxsize=256)
def _fixed_headers(requested: str, variant: str, reason: str, backend: str) -> tuple[Header, ...]:
    """What the answers to many requests have in common."""
    return (
        (b"x-router-model", _latin(variant)),
        (b"x-router-requested-model", _latin(requested)),
        (b"x-router-reason", _latin(reason)),
        (b"x-router-backend", _latin(backend)),
    )


def _latin(text: str) -> bytes:
    """A header value: one line of Latin-1."""
    return text.replace("\r", " ").replace("\n", " ")[:512].encode("latin-1", "replace")
