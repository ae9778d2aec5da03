"""A test stage: a simulated Ollama on virtual cards, optionally the router in front of it, and clients, in one process.

On a virtual clock nothing waits in real time, so minutes of traffic take seconds and repeat exactly.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.config import load_config
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as its client saw it; `served` is the model named in the answer."""

    asked: str
    served: str
    status: int
    took_s: float
    ttft_s: float
    tokens_per_s: float
    error: str = ""


@dataclass
class Stage:
    """A running stage. `url` is the server for clients: the router, or the simulated Ollama itself."""

    sim: SimulatedOllama
    url: str
    client: HttpRelay
    router: Running | None = None
    loads: list[str] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)

    async def ask(self, body: Mapping[str, Any], path: str = "/api/generate") -> Reply:
        """Send one request and read its answer to the end."""
        loop = asyncio.get_running_loop()
        data, started_s = json.dumps(body).encode(), loop.time()
        headers = [(b"content-type", b"application/json")]
        answer = await self.client.open(UpstreamRequest(b"POST", path.encode(), headers, data, len(data)))
        ttft_s, parts = loop.time() - started_s, []
        while part := await answer.read():
            parts.append(part)
        return _reply(str(body["model"]), answer.status, b"".join(parts), loop.time() - started_s, ttft_s)


def _reply(asked: str, status: int, text: bytes, took_s: float, ttft_s: float) -> Reply:
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else {}
    if status != 200 or "error" in last:
        return Reply(asked, "", status, took_s, ttft_s, 0.0, str(last.get("error", ""))[:200])
    rate = last.get("eval_count", 0) / (last.get("eval_duration") or 1) * 1e9
    return Reply(asked, str(last.get("model", "")), status, took_s, ttft_s, rate)


@asynccontextmanager
async def stage(
    sim_config: SimConfig,
    router_config: Mapping[str, object] | None,
    *,
    probe_lag_s: float = 0.0,
    has_probe: bool | None = True,
    backend: str = "local",
) -> AsyncIterator[Stage]:
    """Run a simulated Ollama, and the router in front of it unless `router_config` (with dotted keys) is None.

    `has_probe`: True for the simulated cards' probe, False for none, None for the probe that the configuration names.
    """
    loads: list[str] = []
    evictions: list[str] = []

    def on_event(kind: str, model: str, _detail: str) -> None:
        if kind == "starting":
            loads.append(model)
        elif kind == "evicting":
            evictions.append(model)

    async with running_simulator(replace(sim_config, on_event=on_event)) as sim:
        # Timeouts beyond any story: on the virtual clock they would otherwise expire within milliseconds.
        client = HttpRelay(sim.url, pool_size=512, first_byte_timeout_s=1e5, idle_timeout_s=1e5)
        if router_config is None:
            yield Stage(sim, sim.url, client, None, loads, evictions)
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
        async with running(config, probe=probe, is_probed=has_probe is not None) as router:
            client = HttpRelay(router.url, pool_size=512, first_byte_timeout_s=1e5, idle_timeout_s=1e5)
            yield Stage(sim, router.url, client, router, loads, evictions)
            await client.aclose()


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned plain text; the first row holds the titles."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    )


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] if ordered else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 for no values."""
    return statistics.mean(values) if values else 0.0
