"""One request and its response, as the handlers use them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ollama_simulator.gojson import bind, dump
from ollama_simulator.http.requests import Request
from ollama_simulator.http.response import Response
from ollama_simulator.models.installed import Installed
from ollama_simulator.models.library import Library
from ollama_simulator.models.registry import Registry
from ollama_simulator.models.weights import Weights
from ollama_simulator.scheduler.engine import Engine, EngineError
from router.core.go.json_scan import EndOfBody
from router.core.go.types import Struct
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
CUT_SHORT = "unexpected EOF"
"""Go's text for a body that ends before its announced length."""

LISTING_STATUS = {"/api/tags": 500, "/api/show": 400, "/api/copy": 400, "/api/create": 400, "/api/pull": 400}
"""The status of a failed listing of manifests, on the routes that pass its text on."""


class ApiError(Exception):
    """An error response: its status, Ollama's text, and its type on Ollama's own routes."""

    def __init__(self, status: int, text: str, content_type: str = JSON) -> None:
        super().__init__(text)
        self.content_type = content_type
        self.status = status
        self.text = text


def wall_clock() -> datetime:
    """Return the current date. Tests replace it; nothing else reads the wall clock."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Host:
    """The state shared by all requests of one simulated server.

    `registry` is what pull and push reach (None: no network). `spare_weights`: GGUF files that create knows by digest.
    """

    engine: Engine
    library: Library
    version: str = "0.33.0"
    cloud_disabled: bool = True
    now: Callable[[], datetime] = wall_clock
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    models_dir: str = "/models"
    remotes: tuple[str, ...] = ("ollama.com",)
    registry_error: str = "proxyconnect tcp: dial tcp 127.0.0.1:9: connect: connection refused"
    registry: Registry | None = None
    spare_weights: dict[str, Weights] = field(default_factory=dict)

    def stamp(self) -> str:
        """Return the current date in Go's JSON format."""
        return go_time(self.now(), self.rng.randrange(1000))

    def random_hex(self, length: int) -> str:
        """`length` random hexadecimal digits, determined by the seed."""
        return f"{self.rng.getrandbits(4 * length):0{length}x}"


def go_time(at: datetime, nanos: int = 0) -> str:
    """RFC 3339 in UTC as Go prints it: nanoseconds without trailing zeros."""
    fraction = f"{at.microsecond:06d}{nanos:03d}".rstrip("0")
    return f"{at:%Y-%m-%dT%H:%M:%S}" + (f".{fraction}" if fraction else "") + "Z"


@dataclass(slots=True)
class Exchange:
    """A request, its response, and their server. `parameter` is the path parameter."""

    host: Host
    request: Request
    response: Response
    parameter: str = ""
    started_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    has_listing_failed: bool = False

    async def list_manifests(self, listing_s: float) -> None:
        """Take `listing_s` to list all manifests, as a look-up does. Raises ApiError if one is removed meanwhile.

        The routes that run models report it with texts of their own: see `installed`.
        """
        library = self.host.library
        count, _ = library.removed
        await asyncio.sleep(listing_s)
        now, gone = library.removed
        if now == count or gone is None:
            return
        path = f"{self.host.models_dir}/manifests/{gone.host}/{gone.namespace}/{gone.model}/{gone.tag}"
        text = f"stat {path}: no such file or directory"
        if self.request.path in LISTING_STATUS:
            raise ApiError(LISTING_STATUS[self.request.path], text)
        self.has_listing_failed = True

    async def bind(self, schema: Struct) -> dict[str, Any]:
        """Return the body as `schema`. Raises ApiError 400 with Go's text."""
        try:
            return bind(await self.request.read(), schema)
        except BadRequest as error:
            text = "missing request body" if isinstance(error, EndOfBody) else error.message
            if not self.request.is_body_complete:
                self.response.close_silently()
                text = CUT_SHORT
            raise ApiError(400, self.request.read_error or text) from None

    async def check_whole(self, handler: str) -> None:
        """Refuse a body cut short on `/v1/*`, which Ollama reads as a whole before it looks at it. Raises ApiError."""
        if handler.startswith("v1_") and self.request.method == "POST":
            await self.request.read()
            if not self.request.is_body_complete and not self.request.read_error:
                self.response.close_silently()
                raise ApiError(400, CUT_SHORT)

    async def json(self, value: Any, status: int = 200, content_type: str = JSON, *, newline: bool = False) -> None:
        """Send one JSON value as the whole response."""
        self.response.status = status
        self.response.set("Content-Type", content_type)
        await self.response.write(dump(value) + (b"\n" if newline else b""))

    async def lines(self, values: AsyncIterator[Any]) -> None:
        """Send a stream of JSON lines; an ApiError is its last line, or the response if nothing was sent before."""
        response = self.response
        response.set("Content-Type", NDJSON)
        try:
            async for value in values:
                await response.line(dump(value) + b"\n")
            if not response.is_started:
                await response.flush()
        except ApiError as error:
            if response.is_started:
                await response.line(dump({"error": error.text}) + b"\n")
                return
            response.status = error.status
            response.set("Content-Type", "application/json")
            await response.line(dump({"error": error.text}))

    async def error(self, status: int, text: str, content_type: str = JSON) -> None:
        """Send an error in Ollama's format."""
        await self.json({"error": text}, status, content_type)

    def installed(self, text: str, *, missing: str, missing_status: int = 404, unnamed: tuple[int, str]) -> Installed:
        """Return the installed model named `text`. Raises ApiError with the statuses and texts of the route."""
        name = self.name(text, unnamed=unnamed)
        if name.source is Source.CLOUD:
            raise ApiError(*self.cloud_refusal("remote model is unavailable"))
        if self.has_listing_failed:  # Ollama answers as if no model were named
            raise ApiError(*unnamed)
        model = self.host.library.readable(name)
        if model is None:
            raise ApiError(missing_status, missing)
        return model

    def name(self, text: str, *, unnamed: tuple[int, str]) -> ModelName:
        """Return the parsed name. Raises ApiError: `unnamed` if `text` is empty, 400 if it is invalid."""
        try:
            return ModelName.parse(text)
        except BadRequest as error:
            if error.message == "model is required":
                raise ApiError(*unnamed) from None
            raise ApiError(400, error.message) from None

    def cloud_refusal(self, operation: str, path: str = "") -> tuple[int, str]:
        """Status and text for a cloud model: refused by policy, or the cloud cannot be reached."""
        if self.host.cloud_disabled:
            return 403, f"ollama cloud is disabled: {operation}"
        method = "Get" if self.request.method == "GET" else "Post"
        at = int(self.host.now().timestamp())
        url = f"https://ollama.com:443{path or self.request.path}?ts={at}"
        return 502, f'{method} "{url}": {self.host.registry_error}'


def engine_error(error: EngineError) -> ApiError:
    """Return the response of handleScheduleError to a failed load."""
    return ApiError(error.status, error.text)
