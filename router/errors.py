"""All errors of the router in one tree; each has an HTTP status and a stable code.

RouterError            500  internal_error
├ ConfigError          at start only; names file, line, key and the allowed values
├ BadRequest           400  invalid_request
├ Unauthorized         401  unauthorized       403 on Ollama's own routes, whose CLI takes a 401 for its cloud's
│ └ UnknownFront       401  unauthorized       on all routes: no client sends what this refuses
├ Forbidden            403  forbidden
├ ModelNotFound        404  model_not_found
├ RequestTimeout       408  request_timeout
├ BodyTooLarge         413  body_too_large
├ Misdirected          421  misdirected        a node declines a front's request; carries its findings
├ LimitReached         429  limit_reached      a limit of the team itself; carries Retry-After and what is left
├ Busy                 503  server_busy        carries Retry-After
├ NoVariantFits        503  no_variant_fits    carries the explanation; Retry-After
│ └ NeverFits          503  never_fits         waiting does not help: no Retry-After, and SDKs do not retry
├ UpstreamError        502  upstream_error
│ ├ UpstreamTimeout    504  upstream_timeout
│ ├ UpstreamGone       502  upstream_error     nothing listens at its address
│ └ UpstreamAway       502  upstream_error     no backend that could serve it answers; carries Retry-After
├ LoadFailed           500  load_failed        carries the upstream's own text
└ ProbeError           never reaches a client

Rendering per dialect (Ollama, OpenAI, Anthropic) is `router/api/responses.py`.
"""

from __future__ import annotations


class RouterError(Exception):
    """The root. `message` may be shown to clients; `retry_after_s` becomes a Retry-After header.

    `model` is the one that was asked for, as far as a refusal is about it.
    """

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, retry_after_s: float | None = None, model: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.model = model


class ConfigError(RouterError):
    """The configuration is invalid; the message names file, line, key, the value found and the allowed values."""

    code = "config_error"


class ReloadRefused(RouterError):
    """A reload has changed nothing; the message says why."""

    status = 409
    code = "reload_refused"


class BadRequest(RouterError):
    status = 400
    code = "invalid_request"


class Unauthorized(RouterError):
    """Nobody that is known: no key where one is needed, or one that does not count (any more)."""

    status = 401
    code = "unauthorized"


class UnknownFront(Unauthorized):
    """Something that only fronts may ask of a node, without the key of the fronts."""


class Forbidden(RouterError):
    status = 403
    code = "forbidden"


class ModelNotFound(RouterError):
    status = 404
    code = "model_not_found"


class RequestTimeout(RouterError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(RouterError):
    status = 413
    code = "body_too_large"


class Misdirected(RouterError):
    """A node cannot serve what a front has sent it, and has changed nothing for it. `body` is the answer as JSON."""

    status = 421
    code = "misdirected"

    def __init__(self, message: str, body: bytes) -> None:
        super().__init__(message)
        self.body = body


class LimitReached(RouterError):
    """The request is above a limit of its own team, `why`. `left` are headers that say what is left of the limits.

    `position` is the place in the queue that the request would have had, from 1; None if it is not about the queue.
    """

    status = 429
    code = "limit_reached"

    def __init__(
        self,
        message: str,
        *,
        why: str,
        retry_after_s: float,
        left: tuple[tuple[bytes, bytes], ...] = (),
        position: int | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.why = why
        self.left = left
        self.position = position


class Busy(RouterError):
    """The queue is full, or the wait in it was too long. The default text is Ollama's own, with its two spaces.

    `position` is the request's place in the queue, from 1; None if it stood in none.
    """

    status = 503
    code = "server_busy"

    def __init__(
        self,
        message: str = "server busy, please try again.  maximum pending requests exceeded",
        *,
        retry_after_s: float | None = 1.0,
        position: int | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.position = position


class NoVariantFits(RouterError):
    """No variant of the chain fits fully on the GPU now; the message explains each one with its bytes."""

    status = 503
    code = "no_variant_fits"


class NeverFits(NoVariantFits):
    """No variant of the chain can serve the request, however long it waits; the message ends with what would help."""

    code = "never_fits"


class UpstreamError(RouterError):
    """The upstream Ollama could not be reached, broke off its answer, or did not answer in valid HTTP."""

    status = 502
    code = "upstream_error"


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class UpstreamUnreached(UpstreamTimeout):
    """No connection came about in time, so nothing was sent."""


class UpstreamGone(UpstreamError):
    """The upstream refuses connections: no process listens at its address."""


class UpstreamAway(UpstreamError):
    """No backend that could serve the request answers; it was sent to none of them."""


class NoNodeAnswers(UpstreamAway):
    """A front can use none of its nodes."""

    status = 503
    code = "no_node"


class LoadFailed(RouterError):
    """The upstream answered a load with an error; the message is Ollama's own text."""

    code = "load_failed"

    def __init__(self, message: str, *, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class ProbeError(RouterError):
    """Free memory could not be read. `Cards` handles it; it never reaches a client."""

    code = "probe_error"
