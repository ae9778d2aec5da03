"""Shared by the `/v1/*` dialects: the check for cloud models, request bodies, sending responses and errors."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, Protocol

from ollama_simulator.api.chat import Chunks, Single
from ollama_simulator.api.exchange import JSON, NDJSON, ApiError, Exchange
from ollama_simulator.api.native import gathered
from ollama_simulator.gojson import bind, dump, parse
from router.core.go.types import Struct
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

PLAIN_JSON = "application/json"


class Rejected(Exception):
    """An error of the dialect's middleware: in its own format, but with Ollama's content type and no newline."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class Dialect(Protocol):
    """The output format of one dialect. `starts_early`: stream headers are set before errors are known."""

    starts_early: bool

    def failed(self, status: int, text: str) -> dict[str, Any]:
        """Return the error object."""
        ...

    def whole(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Return the single object of a response that is not streamed."""
        ...

    def events(self, chunk: dict[str, Any]) -> list[bytes]:
        """Return the HTTP chunks of one response object of a stream."""
        ...

    def broken(self) -> list[bytes]:
        """Return the chunks sent when the runner dies in mid-stream. They contain no error, as in Ollama."""
        ...


async def body(exchange: Exchange, schema: Struct) -> dict[str, Any]:
    """Return the request's body. Raises ApiError for cloud models and bad zstd (in Ollama's format), else Rejected."""
    raw = await exchange.request.read()
    if exchange.request.header("Content-Encoding") == "zstd" and not raw.startswith(b"\x28\xb5\x2f\xfd"):
        raise ApiError(400, "invalid input: magic number mismatch")
    refuse_cloud(exchange, _model(raw))
    try:
        return bind(raw, schema)
    except BadRequest as error:
        raise Rejected(exchange.request.read_error or error.message) from None


def _model(raw: bytes) -> str:
    try:
        value = parse(raw)
    except BadRequest:
        return ""
    found = value.get("model") if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def refuse_cloud(exchange: Exchange, model: str, operation: str = "remote model is unavailable") -> None:
    """Refuse a cloud model. Ollama proxies these ahead of the dialect, hence its own format. Raises ApiError."""
    try:
        name = ModelName.parse(model)
    except BadRequest:
        return
    if name.source is Source.CLOUD:
        path = exchange.request.path
        if exchange.parameter:
            path = path.removesuffix(exchange.parameter) + model.rsplit(":", 1)[0]
        raise ApiError(*exchange.cloud_refusal(operation, path))


async def reject(exchange: Exchange, dialect: Dialect, error: Rejected) -> None:
    """Send an error of the middleware."""
    await exchange.json(dialect.failed(error.status, error.text), error.status, JSON)


async def fail(exchange: Exchange, dialect: Dialect, error: ApiError) -> None:
    """Send an error of the handler in the dialect's format."""
    await exchange.json(dialect.failed(error.status, error.text), error.status, PLAIN_JSON, newline=True)


def early_headers(exchange: Exchange) -> None:
    """Set the headers that `/v1/responses` and `/v1/messages` send whether or not the response is a stream."""
    exchange.response.set("Cache-Control", "no-cache")
    exchange.response.set("Connection", "keep-alive")


async def send(
    exchange: Exchange, dialect: Dialect, answer: Single | Chunks, *, stream: bool, field: str = "message"
) -> None:
    """Send the response, streamed or whole. Raises ApiError only if nothing has been written yet."""
    response = exchange.response
    if (isinstance(answer, Single) and not stream) or (isinstance(answer, Chunks) and not stream):
        chunk = answer.value if isinstance(answer, Single) else await gathered(answer, field)
        await exchange.json(dialect.whole(chunk), 200, PLAIN_JSON, newline=True)
        return
    response.set("Content-Type", "text/event-stream")
    if isinstance(answer, Single):
        for data in dialect.events(answer.value):
            await (response.line(data) if dialect.starts_early else response.write(data))
        return
    async with aclosing(answer.stream) as chunks:  # type: ignore[type-var]
        try:
            async for chunk in chunks:
                for data in dialect.events(chunk):
                    await response.line(data)
            if not response.is_started:
                response.set("Content-Type", NDJSON)
                await response.flush()
        except ApiError as error:
            await _break(exchange, dialect, error)


async def _break(exchange: Exchange, dialect: Dialect, error: ApiError) -> None:
    response = exchange.response
    if response.is_started:
        for data in dialect.broken():
            await response.line(data)
        return
    response.status = error.status
    response.set("Content-Type", PLAIN_JSON)
    await response.line(dump(dialect.failed(error.status, error.text)) + b"\n")
