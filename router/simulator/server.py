"""A simulated Ollama: the HTTP API of `api_*.py` over the scheduler of `engine.py`, on virtual cards.

In tests: ``async with running_simulator(SimConfig(...)) as sim`` gives `sim.url`, `sim.engine`, `sim.probe()`,
`sim.faults` (misbehaviour on order) and `sim.seen` (what came in).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from router.core.ollama_options import ServerSettings
from router.simulator import admin, api_anthropic, api_lists, api_manage, api_native, api_openai, api_responses
from router.simulator.arithmetic import Arithmetic
from router.simulator.cards import Cards
from router.simulator.engine import Engine
from router.simulator.exchange import ApiError, Exchange, Host, wall_clock
from router.simulator.faults import Fault, FaultBook, FaultTaken, Seen
from router.simulator.gojson import GoError, Object, parse
from router.simulator.http import Connection
from router.simulator.library import Library, real_library
from router.simulator.llamacpp import FootprintArithmetic
from router.simulator.machine import CardSpec, Machine, Speeds
from router.simulator.probe import CardsProbe
from router.simulator.requests import Request
from router.simulator.response import Response
from router.simulator.routing import (
    ALLOWED_HEADERS,
    DEFAULT_ORIGINS,
    clean,
    find,
    is_address,
    is_allowed_host,
    is_same_origin,
    origin_rule,
)

Handler = Callable[[Exchange], Awaitable[None]]

DEFAULT_TAGS = (
    "llama3.3:70b-instruct-q4_K_M",
    "llama3.3:70b-instruct-q3_K_L",
    "llama3.3:70b-instruct-q2_K",
    "llama3.1:8b-instruct-q8_0",
    "llama3.1:8b",
    "llama3.2:3b",
    "llama3.2:1b",
)


@dataclass(frozen=True, slots=True)
class SimConfig:
    """What a simulated server is. `gpus_mib` are the sizes of its cards (none: CPU only); `machine` overrides them and
    `speeds`. `models` are real tags; `library` overrides them. `run_dir` is the lab's RUN
    directory (vgpu.json, state)."""

    gpus_mib: Sequence[int] = (24564,)
    models: Sequence[str] = DEFAULT_TAGS
    library: Library | None = None
    machine: Machine | None = None
    speeds: Speeds = field(default_factory=Speeds)
    settings: ServerSettings = field(default_factory=ServerSettings)
    arithmetic: Arithmetic | None = None
    seed: int = 0
    run_dir: Path | None = None
    origins: Sequence[str] = ()
    cloud_disabled: bool = True
    now: Callable[[], datetime] = wall_clock
    has_admin: bool = True
    registry: Library | None = None
    on_event: Callable[[str, str, str], None] | None = None

    def built_machine(self) -> Machine:
        """The machine with its cards."""
        if self.machine is not None:
            return self.machine
        cards = (CardSpec(name=f"CUDA{index}", total_mib=size) for index, size in enumerate(self.gpus_mib))
        return Machine(cards=tuple(cards), speeds=self.speeds)


def _handlers() -> dict[str, Handler]:
    found: dict[str, Handler] = {}
    for module in _modules():
        own = {
            name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        }
        found.update({name: value for name, value in own.items() if asyncio.iscoroutinefunction(value)})
    return found


def _modules() -> list[Any]:
    return [api_lists, api_native, api_manage, api_openai, api_responses, api_anthropic]


class SimulatedOllama:
    """One simulated server. `start` binds, `stop` cuts every connection; `url` is valid in between."""

    def __init__(self, config: SimConfig | None = None) -> None:
        self.config = config or SimConfig()
        cards = Cards(self.config.built_machine(), run_dir=self.config.run_dir)
        self.cards = cards
        self.engine = Engine(
            cards,
            self.config.settings,
            arithmetic=self.config.arithmetic or default_arithmetic(),
            seed=self.config.seed,
            on_event=self.config.on_event,
        )
        library = self.config.library
        self.host = Host(
            engine=self.engine,
            library=library if library is not None else real_library(self.config.models),
            version=self.config.settings.version,
            cloud_disabled=self.config.cloud_disabled,
            now=self.config.now,
            rng=random.Random(self.config.seed),
            registry=self.config.registry,
        )
        self.faults = FaultBook()
        self.seen: list[Seen] = []
        self.connections: set[Connection] = set()
        self.url = ""
        self._allows = origin_rule((*DEFAULT_ORIGINS, *self.config.origins))
        self._handlers = _handlers()
        self._server: asyncio.Server | None = None
        self._accepted = 0
        self._checks_host = True

    @property
    def library(self) -> Library:
        """The installed models."""
        return self.host.library

    def probe(self) -> CardsProbe:
        """The virtual cards as a `VramProbe`."""
        return CardsProbe(self.cards)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. Raises OSError where that cannot be."""
        await self.engine.__aenter__()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port)
        bound = self._server.sockets[0].getsockname()
        self._checks_host = bound[0].startswith("127.") or bound[0] == "::1"
        self.url = f"http://{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening, cut every connection, stop the scheduler."""
        if self._server is not None:
            self._server.close()
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in list(self.connections):
            connection.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.__aexit__(None, None, None)

    def _connection(self) -> Connection:
        self._accepted += 1
        return Connection(self._app, self.connections, self._accepted)

    async def _app(self, request: Request, response: Response) -> None:
        loop = asyncio.get_running_loop()
        record = Seen(
            request.method, request.target, request.path, request.headers, request.connection.number, loop.time()
        )
        self.seen.append(record)
        request.connection.records.append(record)
        try:
            await self._answer(request, response, record)
            await response.finish()
        except FaultTaken:
            pass
        except asyncio.CancelledError:
            record.cancelled_at_s = loop.time()
            raise
        finally:
            record.status, record.chunks = response.status, response.chunks_written
            record.is_finished = response.is_finished
            record.body = request.body or b""

    async def _answer(self, request: Request, response: Response, record: Seen) -> None:
        if self.config.has_admin and request.path.startswith("/_sim/"):
            await admin.answer(self, request, response)
            return
        fault = await self._fault(request, record)
        response.fault = fault
        if fault is not None:
            await fault.instead(response)
        if request.raw_path == "*":
            _asterisk(request, response)
            return
        cleaned = clean(request.raw_path)
        if cleaned != request.raw_path and request.method != "CONNECT":
            await _redirect(response, 307, cleaned + (f"?{request.query}" if request.query else ""))
            return
        match = find(request.method, request.path, request.query)
        if match.location:
            await _redirect(response, match.status, match.location)
            return
        if match.allow:
            response.set("Allow", match.allow)
        if not self._admits(request, response):
            return
        if not match.handler:
            response.status = match.status
            response.set("Content-Type", "text/plain")
            await response.write(b"404 page not found" if match.status == 404 else b"405 method not allowed")
            return
        exchange = Exchange(self.host, request, response, match.parameter)
        try:
            await self._handlers[match.handler](exchange)
        except ApiError as error:
            await exchange.error(error.status, error.text)

    async def _fault(self, request: Request, record: Seen) -> Fault | None:
        if not self.faults.ordered:
            return None
        if request.method == "POST" and "/blobs/" not in request.path:
            record.model = _model_of(await request.read())
        return self.faults.take(request.method, request.path, record.model)

    def _admits(self, request: Request, response: Response) -> bool:
        """CORS and the Host rule; False when the answer is already complete."""
        origin = request.header("Origin")
        if origin and not is_same_origin(request):
            if not self._allows(origin):
                response.status = 403
                return False
            response.set("Access-Control-Allow-Origin", origin)
            if request.method == "OPTIONS":
                _preflight(response)
                return False
            response.set("Vary", "Origin")
        if self._checks_host:
            if not is_allowed_host(request.host, "localhost"):
                response.headers.clear()
                response.status = 403
                return False
            if request.method == "OPTIONS" and not is_address(request.host):
                response.status = 204
                return False
        return True


def default_arithmetic() -> Arithmetic:
    """The runner's memory where the configuration names no other plug: what llama.cpp would take."""
    return FootprintArithmetic()


def _model_of(body: bytes) -> str:
    try:
        value = parse(body)
    except GoError:
        return ""
    names = dict(value) if isinstance(value, Object) else {}
    return str(names.get("model") or names.get("name") or "")


def _asterisk(request: Request, response: Response) -> None:
    """net/http answers ``OPTIONS *`` itself, and refuses ``*`` with any other method."""
    if request.method != "OPTIONS":
        response.status = 400
        response.set("Connection", "close")
        response.close()


def _preflight(response: Response) -> None:
    response.status = 204
    response.set("Access-Control-Allow-Headers", ALLOWED_HEADERS)
    response.set("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
    response.set("Access-Control-Max-Age", "43200")
    names = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
    response.headers += [("Vary", name) for name in names]


async def _redirect(response: Response, status: int, location: str) -> None:
    response.status = status
    response.set("Location", location)
    if response.request.method in ("GET", "HEAD"):
        response.set("Content-Type", "text/html; charset=utf-8")
    if response.request.method == "GET":
        word = "Moved Permanently" if status == 301 else "Temporary Redirect"
        shown = location.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;")
        await response.write(f'<a href="{shown}">{word}</a>.\n\n'.encode())


@asynccontextmanager
async def running_simulator(config: SimConfig | None = None, port: int = 0) -> AsyncIterator[SimulatedOllama]:
    """A simulated server on an ephemeral loopback port, stopped at the end."""
    server = SimulatedOllama(config)
    await server.start("127.0.0.1", port)
    try:
        yield server
    finally:
        await server.stop()
