"""A router in real time in front of the simulated Ollama with a virtual 24 GB card, for real clients."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ollama_simulator.http.faults import FaultBook
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator
from router.app import Running, running
from router.config import load_config
from tests.e2e.waiting import until_now

T = TypeVar("T")

CHAIN = "llama3.3:70b"
VARIANTS = ("llama3.3:70b-instruct-q4_K_M", "llama3.3:70b-instruct-q2_K", "llama3.1:8b-instruct-q8_0", "llama3.2:3b")
SERVED = "llama3.1:8b-instruct-q8_0"
TOO_BIG = "qwen2.5:72b"
"""A model whose chain has no variant that fits."""
EMBEDDER = "nomic-embed-text:v1.5"
START_S = 30.0


@dataclass
class Rig:
    """The router for clients (`url`), and the simulated Ollama for a test to examine. Both run in one thread."""

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
        """Call `work` in the loop's thread; return its result."""

        async def run() -> T:
            return work()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` in the loop's thread; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_S)

    def residents(self) -> list[str]:
        """Return the loaded models of the server itself; derived tags have their own names."""
        return self.do(lambda: [row.model.name for row in self.sim.engine.ps()])

    def spilled(self) -> list[str]:
        """Return the loaded models that are not fully on the card."""
        return self.do(lambda: [row.model.name for row in self.sim.engine.ps() if row.size_vram_bytes < row.size_bytes])

    def unload(self) -> None:
        """Unload all models, and wait until the router has noticed."""
        self.do(lambda: [self.sim.engine.expire(row.model) for row in self.sim.engine.ps()])
        self.until(lambda: not self.residents())
        self.until(lambda: not self.do(lambda: list(self.router.router.backend.world.residents)))

    @staticmethod
    def until(is_so: Callable[[], bool]) -> None:
        """Poll until a condition holds; fail after `START_S`."""
        until_now(is_so, START_S)

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Return the requests that have reached the server on `path`, decoded."""
        return self.do(lambda: [json.loads(seen.body) for seen in self.sim.seen if seen.path == path and seen.body])


async def _serve(ready: Callable[[Rig], None], stop: asyncio.Event, more: dict[str, Any]) -> None:
    loads: list[str] = []
    config = SimConfig(
        machine=Machine(cards=(CardSpec(),), speeds=Speeds(load_mib_per_s=200_000, tokens_per_s=400)),
        models=(*VARIANTS, TOO_BIG, EMBEDDER),
        on_event=lambda kind, model, _detail: loads.append(model) if kind == "starting" else None,
    )
    async with running_simulator(config) as sim:
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "backends.local.url": sim.url,
            "store.path": ":memory:",
            "switch.settle_s": 0.05,
            "chains": {CHAIN: list(VARIANTS), TOO_BIG: [TOO_BIG]},
            **more,
        }
        router_config = load_config(env={}, options=options)
        async with running(router_config, probe=sim.probe(), is_probed=True) as router:
            ready(Rig(asyncio.get_running_loop(), sim, router, loads))
            await stop.wait()


@pytest.fixture(scope="module")
def _rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run one for all tests of a file, in a thread of its own, because the clients block.

    The file's `options_of(folder)`, if it has one, returns what is configured besides.
    """
    options_of: Callable[[Path], dict[str, Any]] = getattr(request.module, "options_of", lambda _: {})
    more = options_of(tmp_path_factory.mktemp("rig"))
    found: list[Rig] = []
    is_ready, stop = threading.Event(), asyncio.Event()

    def ready(rig: Rig) -> None:
        found.append(rig)
        is_ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(_serve(ready, stop, more)), daemon=True)
    thread.start()
    assert is_ready.wait(START_S), "the router did not start"
    yield found[0]
    found[0].loop.call_soon_threadsafe(stop.set)
    thread.join(START_S)
    assert not thread.is_alive()


@pytest.fixture
def rig(_rig: Rig) -> Iterator[Rig]:
    """Provide it without faults. After each test no model may have spilled, and no request may be in flight."""
    _rig.do(_rig.faults.clear)
    _rig.loads.clear()
    yield _rig
    assert _rig.spilled() == []
    world = _rig.router.router.backend.world
    _rig.until(lambda: not _rig.do(lambda: [one for one in world.residents.values() if one.in_flight]))
