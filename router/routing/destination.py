"""Where a request is sent, and what body and answer must look like for it: name, options, headers, events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest, Patch, rewrite
from router.http.headers import Header
from router.telemetry import Decided

Rename = tuple[bytes, bytes]

_LONGEST_NAME = 512  # of a requested model whose headers are remembered


@dataclass(frozen=True, slots=True)
class Destination:
    """The same for every request with equal demands, as long as nothing has changed.

    `weights` is the resident that the request enters, "" where it enters none (it is passed on). `variant` is the
    chain's name for the model, `served` the model as answers and logs show it, `name` what goes upstream. `rename` is
    (name in the answer, name to show). `headers` and `lines` are the `X-Router-*` headers of a request that did not
    wait. `decided` is the template of its event. `may_vanish`: a 404 means that a variant or its tag is gone, so the
    chain decides again.
    """

    weights: str
    variant: str
    served: str
    reason: str
    name: str
    patch: Patch
    drop: frozenset[str]
    rename: Rename | None
    headers: list[Header]
    lines: bytes
    decided: Decided | None
    may_vanish: bool

    def body(self, request: InferenceRequest, body: bytes) -> bytes:
        """The body to send in place of the client's own."""
        if not request.has_model:
            return body
        return rewrite(
            body,
            model=self.name,
            options=self.patch,
            drop=self.drop,
            members=request.members,
            plain=request.plain,
        )

    def headers_after(self, requested: str, queue_s: float, attempts: int, backend: str) -> list[Header]:
        """The `X-Router-*` headers of an answer to a request that had to wait, or was sent more than once."""
        headers = router_headers(requested, self.served, self.reason, queue_s, backend)
        if attempts > 1:
            headers.append((b"x-router-attempts", b"%d" % attempts))
        return headers


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
