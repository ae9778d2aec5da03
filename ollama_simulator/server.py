"""A simulated Ollama: the HTTP API (`api/`) on the scheduler (`scheduler/`) on virtual cards (`machine/`).

In tests: ``async with running_simulator(SimConfig(...)) as sim`` provides `sim.url`, `sim.engine`, `sim.probe()`,
`sim.faults` (faults to inject) and `sim.seen` (the requests received).
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ollama_simulator import admin
from ollama_simulator.api import anthropic, create, lists, manage, native, openai, openai_responses, transfer
from ollama_simulator.api.exchange import ApiError, Exchange, Host, wall_clock
from ollama_simulator.gojson import parse
from ollama_simulator.http.connection import Connection
from ollama_simulator.http.faults import Fault, FaultBook, FaultTaken
from ollama_simulator.http.gate import Gate
from ollama_simulator.http.requests import Request, Seen
from ollama_simulator.http.response import Response
from ollama_simulator.machine.arithmetic import Arithmetic
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.models.library import Library, real_library
from ollama_simulator.models.registry import Registry
from ollama_simulator.scheduler.engine import Engine
from router.core.ollama.options import ServerSettings
from router.errors import BadRequest

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
    """The configuration of a simulated server. `gpus_mib` are the sizes of its cards (none: CPU only); `machine`
    overrides them and `speeds`. `models` are real tags; `library` overrides them. `run_dir` has `vgpu.json` and
    `state/` (see `machine/cards.py`). `keep_seen`: the number of requests kept in `seen`."""

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
    remotes: tuple[str, ...] = ("ollama.com",)
    now: Callable[[], datetime] = wall_clock
    has_admin: bool = True
    keep_seen: int = 100_000
    registry: Registry | None = None
    on_event: Callable[[str, str, str], None] | None = None

    def built_machine(self) -> Machine:
        """Return the machine with its cards."""
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
        found.update({name: value for name, value in own.items() if inspect.iscoroutinefunction(value)})
    return found


def _modules() -> list[Any]:
    return [lists, native, manage, transfer, create, openai, openai_responses, anthropic]


class SimulatedOllama:
    """One simulated server. `url` is valid from `start` to `stop`."""

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
            remotes=self.config.remotes,
            now=self.config.now,
            rng=random.Random(self.config.seed),
            registry=self.config.registry,
        )
        self.faults = FaultBook()
        self.seen: list[Seen] = []
        self.connections: set[Connection] = set()
        self.url = ""
        self._gate = Gate(self.config.origins)
        self._handlers = _handlers()
        self._server: asyncio.Server | None = None
        self._accepted = 0

    @property
    def library(self) -> Library:
        """The installed models."""
        return self.host.library

    def probe(self) -> CardsProbe:
        """Return the virtual cards as a `VramProbe`."""
        return CardsProbe(self.cards)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start to listen. Raises OSError if the address is not available."""
        await self.engine.__aenter__()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port)
        bound = self._server.sockets[0].getsockname()
        self._gate.checks_host = bound[0].startswith("127.") or bound[0] == "::1"
        self.url = f"http://{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening, close every connection, stop the scheduler."""
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
        if len(self.seen) > self.config.keep_seen:
            del self.seen[: len(self.seen) // 2]
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
            controls = admin.Controls(self.faults, self.cards, self.engine, self.seen, self.connections)
            await admin.answer(controls, request, response)
            return
        fault = await self._fault(request, record)
        response.fault = fault
        if fault is not None:
            await fault.instead(response)
        match = await self._gate.route(request, response)
        if match is None:
            return
        exchange = Exchange(self.host, request, response, match.parameter)
        vanish = self.faults.take_vanish(request.method, request.path, record.model)
        try:
            if vanish is not None:
                await exchange.list_manifests(vanish.delay_s)
            await exchange.check_whole(match.handler)
            await self._handlers[match.handler](exchange)
        except ApiError as error:
            await exchange.error(error.status, error.text, error.content_type)

    async def _fault(self, request: Request, record: Seen) -> Fault | None:
        if not self.faults.ordered:
            return None
        if request.method == "POST" and "/blobs/" not in request.path:
            record.model = _model_of(await request.read())
        return self.faults.take(request.method, request.path, record.model)


def default_arithmetic() -> Arithmetic:
    """Return the memory arithmetic if the configuration has none: that of llama.cpp."""
    return FootprintArithmetic()


def _model_of(body: bytes) -> str:
    try:
        value = parse(body)
    except BadRequest:
        return ""
    names = value if isinstance(value, dict) else {}
    return str(names.get("model") or names.get("name") or "")


@asynccontextmanager
async def running_simulator(config: SimConfig | None = None, port: int = 0) -> AsyncIterator[SimulatedOllama]:
    """Run a simulated server on a loopback port, by default a free one."""
    server = SimulatedOllama(config)
    await server.start("127.0.0.1", port)
    try:
        yield server
    finally:
        await server.stop()
