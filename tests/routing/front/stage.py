"""Fronts before scripted nodes, in one process on one virtual clock: what a node says and answers is up to the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ollama_simulator.clock import run_virtual
from router.app import Running, running
from router.config import load_config
from router.core.nodes.call import NodeCall
from router.core.nodes.catalog import NodeCatalog, NodeModel, NodeNeed
from router.core.nodes.declined import NodeDeclined
from router.core.nodes.view import NodeGpu, NodeLoading, NodeResident, NodeView
from router.core.units import GIB
from router.telemetry import Event
from tests.config.keys.play import get, record, send
from tests.http.raw_upstream import RawUpstream, Visit, answer, chunk, raw_upstream
from tests.routing.front.proxy import FaultProxy, fault_proxy

KEY = "the-key-of-the-fleet-0123456789"
BIG, MIDDLE, SMALL = "big:32b", "middle:8b", "small:3b"
SIZES = {BIG: 20, MIDDLE: 6, SMALL: 2}
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def weights_of(model: str) -> str:
    return f"sha256-{model}"


def model_of(name: str) -> NodeModel:
    """Return a model that needs a GiB more than its size at the least context, and two more at 32768."""
    size = SIZES[name] * GIB
    return NodeModel(
        name=name,
        digest=f"digest-{name}",
        size_bytes=size,
        weights=weights_of(name),
        family="llama",
        architecture="llama",
        capabilities=("completion", "tools"),
        parameter_count=size / 1.0,
        context_length=131072,
        needs=(NodeNeed(8192, size + GIB), NodeNeed(32768, size + 2 * GIB)),
        load_s=float(SIZES[name]),
    )


@dataclass
class FakeNode:
    """A node that says what a test wants. `calls` are the calls that came; `reply` scripts inference requests."""

    name: str
    gib: int = 24
    models: tuple[str, ...] = (BIG, MIDDLE, SMALL)
    residents: dict[str, dict[str, Any]] = field(default_factory=dict)
    loading: dict[str, float] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    declines: int = 0
    script: list[Any] = field(default_factory=list)
    status: int = 200
    is_silent: bool = False
    takes_s: float = 0.0
    key: str = KEY
    boot: str = "boot-1"
    seq: int = 0
    calls: list[NodeCall | None] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    upstream: RawUpstream | None = None
    streams: int = 0
    at_work: int = 0
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        assert self.upstream is not None
        return self.upstream.url

    # --- what it says --------------------------------------------------------------------------------------------

    def catalog(self) -> NodeCatalog:
        return NodeCatalog.of(tuple(map(model_of, self.models)))

    def view(self) -> NodeView:
        self.seq += 1
        held = sum(SIZES[model] + 1 for model in self.residents) * GIB
        catalog = self.catalog()
        rows = [
            NodeResident(
                weights=weights_of(model),
                context=32768,
                is_full=True,
                held_bytes=((SIZES[model] + 1) * GIB,),
                **more,
            )
            for model, more in self.residents.items()
        ]
        view = NodeView(
            name=self.name,
            boot_id=self.boot,
            seq=self.seq,
            version="1.0",
            ollama="0.12.0",
            is_up=True,
            draining=False,
            memory="probed",
            gpus=(NodeGpu(f"GPU-{self.name}", self.gib * GIB, self.gib * GIB - held),),
            residents=tuple(rows),
            loading=tuple(NodeLoading(weights_of(model), 32768, eta) for model, eta in self.loading.items()),
            catalog_digest=catalog.catalog_digest,
            learned_digest=catalog.learned_digest,
        )
        return msgspec.structs.replace(view, **self.changes)

    def hold(self, model: str, **more: Any) -> None:
        """Have a model loaded, and say so."""
        self.residents[model] = more
        self.tell()

    def tell(self, **changes: Any) -> None:
        """Say the present state to all fronts, with other fields of the view."""
        self.changes |= changes
        self._event.set()
        self._event = asyncio.Event()

    # --- what it answers -----------------------------------------------------------------------------------------

    async def serve(self, visit: Visit) -> None:
        target = visit.target.decode()
        head = visit.head.lower()
        if f"authorization: bearer {self.key}".encode() not in head:
            await answer(b'{"error":"unauthorized"}', status=b"401 Unauthorized")(visit)
        elif target == "/router/node/events":
            await self._stream(visit)
        elif target == "/router/node/catalog":
            await answer(self.catalog().to_json())(visit)
        elif target in ("/api/tags", "/api/ps"):
            await self._list(visit, target)
        else:
            self.targets.append(target)
            self.heads.append(visit.head)
            await self._infer(visit)

    async def _stream(self, visit: Visit) -> None:
        if self.is_silent:
            visit.writer.transport.abort()
            return
        await visit.say(SSE_HEAD)
        self.streams += 1
        try:
            while not self.is_silent:
                await visit.say(chunk(b"data: " + self.view().to_json() + b"\n\n"))
                changed = self._event
                try:
                    async with asyncio.timeout(1.0):
                        await changed.wait()
                except TimeoutError:
                    pass
            visit.writer.transport.abort()
        finally:
            self.streams -= 1

    async def _list(self, visit: Visit, target: str) -> None:
        names = self.models if target == "/api/tags" else self.residents
        rows = [{"name": name, "model": name, "size": SIZES[name] * GIB, "digest": f"digest-{name}"} for name in names]
        await answer(json.dumps({"models": rows}).encode())(visit)

    async def _infer(self, visit: Visit) -> None:
        line = next((one for one in visit.head.split(b"\r\n") if one.lower().startswith(b"x-router-call:")), None)
        call = NodeCall.from_header(line.partition(b":")[2].strip()) if line is not None else None
        self.calls.append(call)
        if self.takes_s:
            self.at_work += 1
            await asyncio.sleep(self.takes_s)
            self.at_work -= 1
        if self.script and self.script[0] == "close":  # as one that has closed it before the request came
            self.script.pop(0)
            visit.writer.close()
            return
        if self.script and (what := self.script.pop(0)) != "decline":
            self.status = what
        elif self.script:
            self.declines = 1
        if self.declines and not (call is not None and call.is_final):
            self.declines -= 1
            declined = NodeDeclined(error="nothing fits here", node=self.name, boot_id=self.boot, seq=self.seq)
            await answer(declined.to_json(), status=b"421 Misdirected Request")(visit)
            return
        model = call.chain[-1].model if call is not None else "?"
        body = json.dumps({"model": model, "response": "hi", "done": True}).encode()
        reason = "resident" if call is None or len(call.chain) == 1 else f"fallback: {call.chain[0].model} too big"
        head = (
            b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\nx-router-model: %b\r\nx-router-reason: %b\r\n"
            b"x-router-queue-ms: 0\r\nx-router-backend: local\r\ncontent-length: %d\r\n\r\n"
        )
        await visit.say(head % (self.status, model.encode(), reason.encode(), len(body)) + body)


@dataclass
class Stage:
    """Running fronts with their nodes by name, and what the first front reported."""

    nodes: dict[str, FakeNode]
    fronts: list[Running]
    events: list[Event] = field(default_factory=list)
    proxies: dict[str, FaultProxy] = field(default_factory=dict)

    @property
    def front(self) -> Running:
        return self.fronts[0]

    async def ask(self, model: str = SMALL, front: int = 0, headers: Sequence[Any] = (), **more: Any):
        """Send one request; return status, node, and the answer."""
        body = {"model": model, "prompt": "hi", "stream": False, **more}
        reply = await send(self.fronts[front].url, "POST", "/api/generate", body, headers)
        return reply.status, reply.headers.get("x-router-backend", ""), reply

    async def chat(self, talk: str, model: str = SMALL, front: int = 0):
        body = {"model": model, "messages": [{"role": "user", "content": talk}], "stream": False}
        reply = await send(self.fronts[front].url, "POST", "/api/chat", body)
        return reply.status, reply.headers.get("x-router-backend", ""), reply

    async def get(self, target: str):
        return await get(self.front.url, target)

    async def admin(self, target: str):
        return (await get(self.front.admin_url, target)).json()

    async def up_by_metrics(self) -> dict[str, float]:
        """Return `ollama_router_backend_up` by node."""
        text = (await get(self.front.admin_url, "/metrics")).body.decode()
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith("ollama_router_backend_up{"))
        return {labels.split('"')[1]: float(value) for labels, _, value in rows}

    def calls(self) -> dict[str, int]:
        """How many inference requests each node has had."""
        return {name: len(node.calls) for name, node in self.nodes.items() if node.calls}

    def of(self, kind: type) -> list[Any]:
        self.front.router.telemetry.flush()
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def fronted(
    nodes: Mapping[str, FakeNode],
    tmp_path: Any,
    config: Mapping[str, object] | None = None,
    fronts: int = 1,
    through: Mapping[str, bytes] | None = None,
):
    """Run fronts before these nodes, whose key is in a file below `tmp_path`.

    Those in `through` are reached by a proxy that can fail, for all connections or for those with a path.
    """
    key_file = tmp_path / "node.key"
    key_file.write_text(KEY + "\n")
    async with AsyncExitStack() as stack:
        for node in nodes.values():
            node.upstream = await stack.enter_async_context(raw_upstream(node.serve))
        proxies = {
            name: await stack.enter_async_context(fault_proxy(nodes[name].url, only))
            for name, only in (through or {}).items()
        }
        urls = [proxies[name].url if name in proxies else node.url for name, node in nodes.items()]
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "backends.local.kind": "node",
            "backends.local.key_file": str(key_file),
            "backends.local.discover.static": urls,
            **(config or {}),
        }
        loaded = load_config(env={}, options={key: value for key, value in options.items() if value is not None})
        one = Stage(dict(nodes), [], proxies=proxies)

        class Hook:
            def on(self, event: Event) -> None:
                one.events.append(event)

        for number in range(fronts):
            hooks = [Hook()] if number == 0 else []
            one.fronts.append(await stack.enter_async_context(running(loaded, hooks=hooks)))
        await record(one.front.admin_url)
        yield one


def play(story, nodes, tmp_path, config=None, fronts=1):
    """Return what `story` returns for fronts before these nodes, on a virtual clock."""

    async def run():
        async with fronted({node.name: node for node in nodes}, tmp_path, config, fronts) as one:
            return await story(one)

    return run_virtual(run())
