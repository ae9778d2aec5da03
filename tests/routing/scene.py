"""The routing of one backend on a virtual clock, with a relay whose answers a test gives by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ollama_simulator.clock import run_virtual
from router.config import load_config, rulebook_of
from router.core.ollama.routes import TARGETS
from router.core.payload.read import read_request
from router.core.teams.team import ANYONE, Identity
from router.errors import UpstreamError
from router.http.client.response import NO_HEAD, AnswerHead, Connection, UpstreamRequest, UpstreamResponse
from router.routing.call import Call
from router.routing.chains import Chains
from router.routing.decisions import Decisions
from router.routing.directory import Directory
from router.routing.dispatch import Dispatcher
from router.routing.ruled import RulesInForce
from router.routing.warmup import Warmup
from router.telemetry import Finished, Telemetry
from tests.backend.machine import MemoryMachine
from tests.backend.scene import Scene, backend_on

JSON = [(b"content-type", b"application/json")]


@dataclass(eq=False)
class Sent:
    """A request that went upstream, and the answer that a test gives to it. Is the answer's source."""

    request: UpstreamRequest
    on_head: Callable[[], None]
    response: UpstreamResponse = field(init=False)
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        self.response = UpstreamResponse(self, NO_HEAD)

    @property
    def body(self) -> Any:
        assert isinstance(self.request.body, bytes)
        return json.loads(self.request.body)

    def answer(self, status: int = 200, body: bytes = b"{}") -> None:
        """Let the whole answer come."""
        self.response.begin(AnswerHead(status, JSON, dict(JSON)))
        self.response.feed(body)
        self.response.finish()
        self.on_head()

    def fail(self, error: UpstreamError) -> None:
        """There will be no answer."""
        self.response.fail(error)
        self.on_head()

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None:
        self.is_cancelled = True


class HandRelay:
    """Implements `Relay`. `free` connections can be used at once; `connect` waits for `may_connect`."""

    def __init__(self, free: int = 100) -> None:
        self.free, self.given_back = free, 0
        self.may_connect = asyncio.Event()
        self.error: Exception | None = None
        self.sent: list[Sent] = []
        self.is_closed = False

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        came = asyncio.Event()
        self.sent.append(Sent(request, came.set))
        await came.wait()
        return self.sent[-1].response

    def open_now(
        self, request: UpstreamRequest, on_head: Callable[[], None], connection: Connection | None = None
    ) -> UpstreamResponse | None:
        if connection is None:
            if not self.free:
                return None
            self.free -= 1
        self.sent.append(Sent(request, on_head))
        return self.sent[-1].response

    async def connect(self) -> Connection:
        await self.may_connect.wait()
        if self.error is not None:
            raise self.error
        return self

    connect_reserved = connect

    def give_back(self, _: Connection) -> None:
        self.given_back += 1

    async def aclose(self) -> None:
        self.is_closed = True


@dataclass
class Routing(Scene):
    """A scene with what routes requests to its backend."""

    relay: HandRelay
    chains: Chains
    decisions: Decisions
    directory: Directory
    dispatcher: Dispatcher
    warmup: Warmup
    rules: RulesInForce

    def call(self, model: str, path: str = "/api/generate", *, strict: bool = False, **body: object) -> Call:
        """Read a request as the edge does, and begin it as the dispatcher does."""
        call = self.unbegun(model, path, strict=strict, **body)
        self.chains.begin(call)
        return call

    def unbegun(
        self,
        model: str,
        path: str = "/api/generate",
        *,
        identity: Identity = ANYONE,
        strict: bool = False,
        **body: object,
    ) -> Call:
        """Read a request of `identity` as the edge does."""
        data = json.dumps({"model": model, **body}).encode()
        route = TARGETS[("POST", path.encode())]
        now_s = asyncio.get_running_loop().time()
        request = read_request(route.kind, data)
        return Call(route, request, data, b"", "id-1", identity, strict=strict, since_s=now_s)

    def ends(self) -> list[tuple[str, int, str]]:
        """How requests have ended: outcome, status, and the phase in which a client left."""
        return [(end.outcome, end.status, end.phase) for end in self.heard.of(Finished)]

    def in_flight(self) -> int:
        """Count the requests that hold a resident."""
        return sum(tracked.in_flight for tracked in self.backend.world.residents.values())


@asynccontextmanager
async def routing_on(machine: MemoryMachine, options: Mapping[str, object] | None = None, **more: Any):
    """Everything that routes, in front of `machine`."""
    relay = HandRelay()
    async with backend_on(machine, options, relay=relay, **more) as scene:
        config = load_config(env={}, options={"store.path": ":memory:", **(options or {})})
        backend, telemetry = scene.backend, Telemetry([scene.heard])
        rules = RulesInForce(rulebook_of(config))
        chains = Chains(rules)
        decisions = Decisions(backend, chains, config.defaults)
        directory = Directory(backend, chains, decisions)
        dispatcher = Dispatcher(backend, chains, decisions, config.queue.wait_s, telemetry)
        warmup = Warmup(backend, decisions, chains, rules)
        yield Routing(
            scene.machine, backend, scene.heard, relay, chains, decisions, directory, dispatcher, warmup, rules
        )


def routed(
    story: Callable[[Routing], Awaitable[None]],
    machine: MemoryMachine,
    options: Mapping[str, object] | None = None,
    **more: Any,
) -> None:
    """Run `story` with everything that routes, on a fresh virtual clock; nothing is left in flight or in line."""

    async def run() -> None:
        async with routing_on(machine, options, is_watched=True, **more) as routing:
            await story(routing)
            await asyncio.sleep(0)
            assert (routing.in_flight(), routing.backend.line.depth) == (0, 0)

    run_virtual(run())
