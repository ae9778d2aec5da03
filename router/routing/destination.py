"""Where a request is sent, and what that means for its body and its answer: name, options, headers, event."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from router.core.ollama.names import key_of
from router.core.payload.read import InferenceRequest, Patch, rewrite
from router.http.client.outgoing import Body
from router.http.headers import Header, header_lines
from router.routing.ruled import RuledChain
from router.telemetry import Decided

Rename = tuple[bytes, bytes]

_MAX_VALUE = 512  # characters of a header's value


@dataclass(frozen=True, slots=True)
class Destination:
    """Where requests with equal demands are sent; shared by all of them during one epoch.

    `weights` is the resident that a request enters, "" if it is passed on without one. `variant` is the chain's name
    for the model, `served` the name in answers and logs, `name` the one sent upstream. `rename` is (name in the answer,
    name to show), `errors` the same for the texts of errors, which name what the client asked for. `headers` and
    `lines` are the `X-Router-*` headers of a request that did not wait. `decided` is the template of its event.
    `may_vanish`: a 404 means that the variant or its tag was deleted, and that the request must be decided again.
    `loads` are the weights that Ollama loads for a request that is passed on, "" if it loads none. `chain` is the chain
    by which a resident was chosen, None if it is passed on. `is_short`: a bigger variant is passed over for want of
    memory that others hold.
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
    errors: Rename | None = None
    loads: str = ""
    chain: RuledChain | None = None
    is_short: bool = False

    def body(self, request: InferenceRequest, body: bytes) -> Body:
        """Return the body to send upstream in place of the client's."""
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

    def headers_after(self, requested: str, queue_s: float, attempts: int, backend: str) -> tuple[list[Header], bytes]:
        """Return the `X-Router-*` headers of an answer to a request that waited or was sent more than once.

        They are returned as a list and as lines; nobody may change the list.
        """
        return headers_of(requested, self.served, self.reason, int(queue_s * 1000), attempts, backend)


def client_spelling(requested: str, variant: str) -> str:
    """Return the requested name if it names the same model as the variant, else the variant's name."""
    return requested if requested == variant or key_of(requested) == key_of(variant) else variant


def router_headers(requested: str, variant: str, reason: str, queue_s: float, backend: str) -> list[Header]:
    """Return the `X-Router-*` headers of an answer."""
    return [
        *_fixed_headers(requested, variant, reason[:_MAX_VALUE], backend),
        (b"x-router-queue-ms", b"%d" % (queue_s * 1000)),
    ]


@lru_cache(maxsize=256)
def headers_of(
    requested: str, variant: str, reason: str, queue_ms: int, attempts: int, backend: str
) -> tuple[list[Header], bytes]:
    """Return the headers and their lines: under load many answers have waited for about as long."""
    headers = router_headers(requested, variant, reason, queue_ms / 1000, backend)
    if attempts > 1:
        headers.append((b"x-router-attempts", b"%d" % attempts))
    return headers, header_lines(headers)


@lru_cache(maxsize=256)
def _fixed_headers(requested: str, variant: str, reason: str, backend: str) -> tuple[Header, ...]:
    """Return the headers that the answers to many requests share."""
    return (
        (b"x-router-model", _latin(variant)),
        (b"x-router-requested-model", _latin(requested)),
        (b"x-router-reason", _latin(reason)),
        (b"x-router-backend", _latin(backend)),
    )


def _latin(text: str) -> bytes:
    """Return a text as a header value: printable Latin-1, of bounded length."""
    text = text[:_MAX_VALUE]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return text.encode("latin-1", "replace")
