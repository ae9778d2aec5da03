"""One request being answered: what every handler needs, and the plain JSON answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ollama_simulator.gojson import bind, dump
from ollama_simulator.http.requests import Request
from ollama_simulator.http.response import Response
from ollama_simulator.models.installed import Installed, Weights
from ollama_simulator.models.library import Library
from ollama_simulator.scheduler.engine import Engine, EngineError
from router.core.go.json_scan import EndOfBody
from router.core.go.types import Struct
from router.core.ollama.names import ModelName, Source
from router.errors import BadRequest

JSON = "application/json; charset=utf-8"


class ApiError(Exception):
    """An answer with a status and Ollama's text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def wall_clock() -> datetime:
    """The date now; the only look at it, replaced in tests."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Host:
    """What all requests of one simulated server share.

    `registry` is what pull can reach (None: no network); `spare_weights` are GGUF files that create knows by digest.
    """

    engine: Engine
    library: Library
    version: str = "0.33.0"
    cloud_disabled: bool = True
    now: Callable[[], datetime] = wall_clock
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    models_dir: str = "/models"
    registry_error: str = "proxyconnect tcp: dial tcp 127.0.0.1:9: connect: connection refused"
    registry: Library | None = None
    spare_weights: dict[str, Weights] = field(default_factory=dict)

    def stamp(self) -> str:
        """The date as Go prints it in JSON."""
        return go_time(self.now(), self.rng.randrange(1000))

    def random_hex(self, length: int) -> str:
        """Seeded hex digits."""
        return f"{self.rng.getrandbits(4 * length):0{length}x}"


def go_time(at: datetime, nanos: int = 0) -> str:
    """RFC 3339 with nanoseconds, trailing zeros cut, as Go prints UTC."""
    fraction = f"{at.microsecond:06d}{nanos:03d}".rstrip("0")
    return f"{at:%Y-%m-%dT%H:%M:%S}" + (f".{fraction}" if fraction else "") + "Z"


@dataclass(slots=True)
class Exchange:
    """A request, its answer, and the server they belong to. `parameter` is the path's."""

    host: Host
    request: Request
    response: Response
    parameter: str = ""
    started_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    async def bind(self, schema: Struct) -> dict[str, Any]:
        """The body as `schema`. Raises ApiError 400 with Go's text."""
        try:
            return bind(await self.request.read(), schema)
        except BadRequest as error:
            text = "missing request body" if isinstance(error, EndOfBody) else error.message
            raise ApiError(400, self.request.read_error or text) from None

    async def json(self, value: Any, status: int = 200, content_type: str = JSON, *, newline: bool = False) -> None:
        """One JSON value as the whole answer."""
        self.response.status = status
        self.response.set("Content-Type", content_type)
        await self.response.write(dump(value) + (b"\n" if newline else b""))

    async def error(self, status: int, text: str) -> None:
        """Ollama's error shape."""
        await self.json({"error": text}, status)

    def installed(self, text: str, *, missing: str, missing_status: int = 404, unnamed: tuple[int, str]) -> Installed:
        """The model that a request names. Raises ApiError in the shapes of the route at hand."""
        name = self.name(text, unnamed=unnamed)
        if name.source is Source.CLOUD:
            raise ApiError(*self.cloud_refusal("remote model is unavailable"))
        model = self.host.library.get(name)
        if model is None:
            raise ApiError(missing_status, missing)
        return model

    def name(self, text: str, *, unnamed: tuple[int, str]) -> ModelName:
        """The parsed name. Raises ApiError: `unnamed` for none at all, else 400."""
        try:
            return ModelName.parse(text)
        except BadRequest as error:
            if error.message == "model is required":
                raise ApiError(*unnamed) from None
            raise ApiError(400, error.message) from None

    def cloud_refusal(self, operation: str, path: str = "") -> tuple[int, str]:
        """Status and text for a model of the cloud: refused by policy, or the cloud is out of reach."""
        if self.host.cloud_disabled:
            return 403, f"ollama cloud is disabled: {operation}"
        method = "Get" if self.request.method == "GET" else "Post"
        at = int(self.host.now().timestamp())
        url = f"https://ollama.com:443{path or self.request.path}?ts={at}"
        return 502, f'{method} "{url}": {self.host.registry_error}'


def engine_error(error: EngineError) -> ApiError:
    """A failed load as handleScheduleError answers it."""
    return ApiError(error.status, error.text)
