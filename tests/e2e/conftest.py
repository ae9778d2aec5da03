"""A router on a real listener, in real time, before the simulated Ollama on a virtual 24 GB card; clients outside."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from ollama_simulator.http.faults import FaultBook
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.config import load_config

T = TypeVar("T")

CHAIN = "llama3.3:70b"
VARIANTS = ("llama3.3:70b-instruct-q4_K_M", "llama3.3:70b-instruct-q2_K", "llama3.1:8b-instruct-q8_0", "llama3.2:3b")
SERVED = "llama3.1:8b-instruct-q8_0"
LONELY = "qwen2.5:72b"
"""A model whose chain has nothing that fits."""
EMBEDDER = "nomic-embed-text:v1.5"
START_S = 30.0


@dataclass
class Street:
    """The router that clients talk to (`url`), and what only a test may look at: the server behind it."""

    loop: asyncio.AbstractEventLoop
    sim: SimulatedOllama
    router: Running
    loads: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.router.url

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def faults(self) -> FaultBook:
        return self.sim.faults

    def do(self, work: Callable[[], T]) -> T:
        """Call something on the loop's thread."""

        async def run() -> T:
            return work()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something on the loop's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_S)

    def residents(self) -> list[str]:
        """Who is loaded in the server itself, hidden tags by their own names."""
        return self.do(lambda: [row.model.name for row in self.sim.engine.ps()])

    def spilled(self) -> list[str]:
        """Who is not fully on the card."""
        return self.do(lambda: [row.model.name for row in self.sim.engine.ps() if row.size_vram_bytes < row.size_bytes])

    def unload(self) -> None:
        """Empty the card, and wait until the router has seen it."""
        self.do(lambda: [self.sim.engine.expire(row.model) for row in self.sim.engine.ps()])
        self.until(lambda: not self.residents())
        self.until(lambda: not self.do(lambda: list(self.router.router.backend.world.residents)))

    @staticmethod
    def until(is_so: Callable[[], bool]) -> None:
        """Wait for what comes by itself; an assertion error where it does not come."""
        deadline_s = time.monotonic() + START_S
        while not is_so():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)

    def asked(self, path: str) -> list[dict[str, Any]]:
        """What has reached the server on `path`."""
        return self.do(lambda: [json.loads(seen.body) for seen in self.sim.seen if seen.path == path and seen.body])


async def _serve(ready: Callable[[Street], None], stop: asyncio.Event) -> None:
    loads: list[str] = []
    config = SimConfig(
        machine=Machine(cards=(CardSpec(),), speeds=Speeds(load_mib_per_s=200_000, tokens_per_s=400)),
        models=(*VARIANTS, LONELY, EMBEDDER),
        on_event=lambda kind, model, detail: loads.append(model) if kind == "starting" else None,
    )
    async with running_simulator(config) as sim:
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "backends.local.url": sim.url,
            "store.path": ":memory:",
            "switch.settle_s": 0.05,
            "chains": {CHAIN: list(VARIANTS), LONELY: [LONELY]},
        }
        router_config = load_config(env={}, options=options)
        async with running(router_config, probe=sim.probe(), is_probed=True) as router:
            ready(Street(asyncio.get_running_loop(), sim, router, loads))
            await stop.wait()


@pytest.fixture(scope="module")
def _street() -> Iterator[Street]:
    """One for all tests of a file, on a thread of its own: its clients block."""
    found: list[Street] = []
    is_ready, stop = threading.Event(), asyncio.Event()

    def ready(street: Street) -> None:
        found.append(street)
        is_ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(_serve(ready, stop)), daemon=True)
    thread.start()
    assert is_ready.wait(START_S), "the router did not start"
    yield found[0]
    found[0].loop.call_soon_threadsafe(stop.set)
    thread.join(START_S)
    assert not thread.is_alive()


@pytest.fixture
def street(_street: Street) -> Iterator[Street]:
    """The street without faults. After each test: nothing was spilled, and nothing is left in flight."""
    _street.do(_street.faults.clear)
    _street.loads.clear()
    yield _street
    assert _street.spilled() == []
    world = _street.router.router.backend.world
    _street.until(lambda: not _street.do(lambda: [one for one in world.residents.values() if one.in_flight]))
