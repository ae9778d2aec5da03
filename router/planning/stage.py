"""A test stage: a simulated Ollama on virtual cards, optionally the router in front of it, and clients, in one process.

On a virtual clock nothing waits in real time, so minutes of traffic take seconds and repeat exactly.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.config import load_config
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest
from router.http.headers import Header
from router.telemetry import Hook

POOL_SIZE = 4096
"""Connections of the clients: more than Ollama lets wait (512), so that a full queue is its answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as its client saw it; `served` is the model named in the answer.

    `asked_s` is when the request was sent, by the loop's clock. `service_s` is how long the model worked on it: reading
    the prompt and generating, without any wait.
    """

    asked: str
    served: str
    status: int
    took_s: float
    ttft_s: float
    tokens_per_s: float
    error: str = ""
    asked_s: float = 0.0
    service_s: float = 0.0

    @property
    def began_s(self) -> float:
        """When the model began to work on it, by the loop's clock."""
        return self.asked_s + self.wait_s

    @property
    def wait_s(self) -> float:
        """From the request to the begin of service."""
        return max(0.0, self.took_s - self.service_s)


@dataclass(frozen=True, slots=True)
class Load:
    """A load that succeeded: when it was complete, and whether some of the model was left on the CPU."""

    model: str
    at_s: float
    is_spilled: bool


@dataclass
class Stage:
    """A running stage. `url` is the server for clients: the router, or the simulated Ollama itself.

    `loads` and `evictions` are the models that Ollama began to load, and evicted by its own choice, in order. `loaded`
    are the loads that succeeded, `unloaded` the models that left with the time. `watchers` are called with each event
    of the simulated scheduler: its kind and the model.
    """

    sim: SimulatedOllama
    url: str
    client: HttpRelay
    router: Running | None = None
    loads: list[str] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)
    loaded: list[Load] = field(default_factory=list)
    unloaded: list[tuple[str, float]] = field(default_factory=list)
    watchers: list[Callable[[str, str], None]] = field(default_factory=list)

    def record(self, kind: str, model: str) -> None:
        """Record an event of the simulated scheduler, and pass it to the watchers."""
        for watch in self.watchers:
            watch(kind, model)
        now_s = asyncio.get_running_loop().time()
        if kind == "starting":
            self.loads.append(model)
        elif kind == "evicting":
            self.evictions.append(model)
        elif kind == "unloaded":
            self.unloaded.append((model, now_s))
        elif kind == "loaded":
            rows = (row for row in self.sim.engine.ps() if row.model.name == model)
            self.loaded.append(Load(model, now_s, any(row.size_vram_bytes < row.size_bytes for row in rows)))

    async def ask(
        self, body: Mapping[str, Any], path: str = "/api/generate", more_headers: Sequence[Header] = ()
    ) -> Reply:
        """Send one request and read its answer to the end."""
        loop = asyncio.get_running_loop()
        data, started_s = json.dumps(body).encode(), loop.time()
        headers = [(b"content-type", b"application/json"), *more_headers]
        answer = await self.client.open(UpstreamRequest(b"POST", path.encode(), headers, data, len(data)))
        ttft_s, parts = loop.time() - started_s, []
        while part := await answer.read():
            parts.append(part)
        took_s = loop.time() - started_s
        return replace(_reply(str(body["model"]), answer.status, b"".join(parts), took_s, ttft_s), asked_s=started_s)


def _reply(asked: str, status: int, text: bytes, took_s: float, ttft_s: float) -> Reply:
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else {}
    if status != 200 or "error" in last:
        return Reply(asked, "", status, took_s, ttft_s, 0.0, str(last.get("error", ""))[:200])
    rate = last.get("eval_count", 0) / (last.get("eval_duration") or 1) * 1e9
    service_s = _service_ns(last) / 1e9
    return Reply(asked, str(last.get("model", "")), status, took_s, ttft_s, rate, service_s=service_s)


def _service_ns(last: Mapping[str, Any]) -> int:
    """Return how long the model worked, by the durations of an answer. Those of an embedding have no part of it."""
    if "eval_duration" in last or "prompt_eval_duration" in last:
        return int(last.get("prompt_eval_duration", 0)) + int(last.get("eval_duration", 0))
    return int(last.get("total_duration", 0)) - int(last.get("load_duration", 0))


def _client(url: str) -> HttpRelay:
    """Return a client with timeouts beyond any story: on the virtual clock others would expire within milliseconds."""
    far_s = 1e5
    return HttpRelay(
        url, pool_size=POOL_SIZE, connect_timeout_s=far_s, first_byte_timeout_s=far_s, idle_timeout_s=far_s
    )


@asynccontextmanager
async def stage(
    sim_config: SimConfig,
    router_config: Mapping[str, object] | None,
    *,
    probe_lag_s: float = 0.0,
    has_probe: bool | None = True,
    backend: str = "local",
    hooks: Sequence[Hook] = (),
) -> AsyncIterator[Stage]:
    """Run a simulated Ollama, and the router in front of it unless `router_config` (with dotted keys) is None.

    `has_probe`: True for the simulated cards' probe, False for none, None for the probe that the configuration names.
    `hooks` receive the router's events. The router's wall clock is that of the simulator, `SimConfig.now`.
    """
    stages: list[Stage] = []

    def on_event(kind: str, model: str, _detail: str) -> None:
        for one in stages:
            one.record(kind, model)

    async with running_simulator(replace(sim_config, on_event=on_event)) as sim:
        client = _client(sim.url)
        stages.append(Stage(sim, sim.url, client))
        if router_config is None:
            yield stages[0]
            await client.aclose()
            return
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            f"backends.{backend}.url": sim.url,
            "store.path": ":memory:",
            **router_config,
        }
        config = load_config(env={}, options=options)
        probe = CardsProbe(sim.cards, probe_lag_s) if has_probe else None
        async with running(
            config,
            probe=probe,
            hooks=hooks,
            is_probed=has_probe is not None,
            unix_now=lambda: sim_config.now().timestamp(),
        ) as router:
            one = stages[0]
            one.client = _client(router.url)
            one.url, one.router = router.url, router
            yield one
            await one.client.aclose()


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned plain text; the first row holds the titles."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values stay below; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile; 0 for no values."""
    return percentile(values, 0.95)


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 for no values."""
    return statistics.mean(values) if values else 0.0
