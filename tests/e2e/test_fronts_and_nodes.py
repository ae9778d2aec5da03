"""Two fronts and three nodes in processes of their own, each node beside an Ollama: killed and upgraded under load."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.processes import answering, free_port, process

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

DEADLINE_S = 300.0
KEY = "a-key-of-the-fronts"
MODELS = ("gpt-oss:20b", "qwen3:14b", "llama3.1:8b")
STREAMS, SLOTS = 50, 17
NODES, FRONTS = ("gpu-a", "gpu-b", "gpu-c"), ("front-1", "front-2")


@dataclass
class Machines:
    """The running processes by name, and the addresses of the routers among them."""

    folder: Path
    http: httpx.AsyncClient
    urls: dict[str, str] = field(default_factory=dict)
    admins: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[AsyncExitStack, asyncio.subprocess.Process]] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        """Start a router by its file."""
        stack = AsyncExitStack()
        argv = ("serve", "--config", str(self.folder / f"{name}.yaml"))
        self.running[name] = stack, await stack.enter_async_context(process(*argv, says=b"listens on"))

    async def stop(self, name: str) -> None:
        """End a process in an orderly way, if it runs."""
        stack, _ = self.running.pop(name)
        await stack.aclose()

    def kill(self, name: str) -> None:
        self.running[name][1].kill()

    def write(self, name: str, config: dict[str, Any]) -> None:
        port = free_port()
        self.urls[name], self.admins[name] = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
        whole = {
            "listen": f"127.0.0.1:{port}",
            "admin": self.admins[name].removeprefix("http://"),
            "store": {"path": ":memory:"},
            **config,
        }
        (self.folder / f"{name}.yaml").write_text(json.dumps(whole))

    async def knows(self, count: int) -> None:
        """Wait until each front that runs uses so many nodes."""
        for name in FRONTS:
            while name in self.running:
                rows = (await self.http.get(f"{self.urls[name]}/readyz")).json()["backends"]
                if sum(bool(row["ready"]) for row in rows.values()) == count:
                    break
                await asyncio.sleep(0.2)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() + "\n"


@asynccontextmanager
async def machines(
    folder: Path, nodes: tuple[str, ...] = NODES, fronts: tuple[str, ...] = FRONTS
) -> AsyncIterator[Machines]:
    """Run everything."""
    (folder / "key").write_text(KEY)
    (folder / "sha256").write_text(hash_of(KEY))
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
    async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=120, limits=limits) as http:
        found = Machines(folder, http)
        for name in nodes:
            port, metrics = free_port(), free_port()
            argv = ("simulate", "--gpu", "24564", "--models", ",".join(MODELS), "--listen", f"127.0.0.1:{port}")
            speeds = ("--load-mib-per-s", "20000", "--tokens-per-s", "30", "--parallel", str(SLOTS))
            pages = ("--gpu-metrics", f"127.0.0.1:{metrics}")
            await stack.enter_async_context(process(*argv, *speeds, *pages, says=b"127.0.0.1"))
            await answering(http, f"http://127.0.0.1:{port}/api/version")
            probe = {"kind": "prometheus", "url": f"http://127.0.0.1:{metrics}/metrics"}
            backend = {"url": f"http://127.0.0.1:{port}", "probe": probe, "server": {"num_parallel": SLOTS}}
            node = {"name": name, "key_sha256_file": str(folder / "sha256")}
            found.write(name, {"backends": {"ollama": backend}, "node": node})
        pool = {"kind": "node", "key_file": str(folder / "key")}
        pool["discover"] = {"static": [found.urls[name] for name in nodes]}  # type: ignore[assignment]
        for name in fronts:
            found.write(name, {"backends": {"pool": pool}, "defaults": {"auto_chains": "off"}})
        for name in (*nodes, *fronts):
            await found.start(name)
        await found.knows(len(nodes))
        try:
            yield found
        finally:
            for name in tuple(found.running):
                await found.stop(name)


async def stream(here: Machines, front: str, model: str, tokens: int = 400) -> tuple[str, str, bool]:
    """Ask for a long answer; return its front, the node that gave it ("" = none), and whether it is whole."""
    body = {"model": model, "prompt": f"[[tokens={tokens}]] hello", "options": {"num_ctx": 2048}}
    node, last = "", ""
    try:
        async with here.http.stream("POST", f"{here.urls[front]}/api/generate", json=body) as answer:
            node = answer.headers.get("x-router-backend", "")
            async for line in answer.aiter_lines():
                last = line or last
    except httpx.TransportError:
        pass
    return front, node, '"done":true' in last


async def fifty(here: Machines) -> list[asyncio.Task[tuple[str, str, bool]]]:
    """Begin fifty streams by both fronts and return when all have begun."""
    asked = zip(range(STREAMS), itertools.cycle(MODELS), itertools.cycle(FRONTS), strict=False)
    tasks = [asyncio.create_task(stream(here, front, model)) for _, model, front in asked]
    while True:
        if sum([await in_flight(here, name) for name in NODES]) >= STREAMS or any(task.done() for task in tasks):
            return tasks
        await asyncio.sleep(0.1)


async def in_flight(here: Machines, name: str) -> int:
    """Return how many requests a node says that it has under way, none if it is gone."""
    try:
        view = await here.http.get(f"{here.urls[name]}/router/node", headers={"authorization": f"Bearer {KEY}"})
    except httpx.TransportError:
        return 0
    return sum(row["in_flight"] for row in view.json()["residents"])


async def warm(here: Machines) -> None:
    """Load each model."""
    for model in MODELS:
        found = [await stream(here, front, model, tokens=2) for front in FRONTS]
        assert all(whole for _, _, whole in found), found


async def test_only_the_streams_of_a_node_or_a_front_that_was_killed_break_n3(tmp_path: Path) -> None:
    """Fifty streams by two fronts: the others end as if nothing had happened, and what comes later is served."""
    async with asyncio.timeout(DEADLINE_S), machines(tmp_path) as here:
        await warm(here)
        tasks = await fifty(here)
        per_node = {name: await in_flight(here, name) for name in NODES}
        killed = max(per_node, key=lambda name: per_node[name])
        assert 0 < per_node[killed] < STREAMS
        here.kill(killed)
        found = await asyncio.gather(*tasks)
        assert {node for _, node, whole in found if not whole} == {killed}
        await here.knows(len(NODES) - 1)
        await warm(here)

        tasks = await fifty(here)
        here.kill("front-1")
        found = await asyncio.gather(*tasks)
        assert {front for front, _, whole in found if not whole} == {"front-1"}
        left = [name for name in NODES if name != killed]
        while sum([await in_flight(here, name) for name in left]):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.1)
        assert (await stream(here, "front-2", MODELS[0]))[2]


async def test_nodes_and_then_fronts_are_upgraded_under_load_n8(tmp_path: Path) -> None:
    """Each is stopped and started again: no request fails. A client goes to the other front if one refuses it."""
    async with asyncio.timeout(DEADLINE_S), machines(tmp_path) as here:
        await warm(here)
        async with clients(here, FRONTS) as counts:
            for name in (*NODES, *FRONTS):
                await asyncio.sleep(2)
                await here.stop(name)
                await here.start(name)
                await here.knows(len(NODES))
        assert set(counts) == {"whole"}, counts
        assert counts["whole"] > 50


async def test_the_key_of_the_fronts_is_changed_under_load_n8(tmp_path: Path) -> None:
    """The next one is added at the node, used by the front, and the one before removed: no request fails."""

    async def takes(here: Machines, key: str, status: int) -> None:
        while True:
            found = await here.http.get(f"{here.urls['gpu-a']}/router/node", headers={"authorization": f"Bearer {key}"})
            if found.status_code == status:
                return
            await asyncio.sleep(0.2)

    async with asyncio.timeout(DEADLINE_S), machines(tmp_path, ("gpu-a",), ("front-1",)) as here:
        assert (await stream(here, "front-1", MODELS[2], tokens=2))[2]
        async with clients(here, ("front-1",), MODELS[2:]) as counts:
            (tmp_path / "sha256").write_text(hash_of(KEY) + hash_of("next"))
            await takes(here, "next", 200)
            (tmp_path / "key").write_text("next")
            url = f"{here.admins['front-1']}/router/reload"
            assert (await here.http.post(url, headers={"x-router-admin": "1"})).status_code == 200
            await asyncio.sleep(5)
            (tmp_path / "sha256").write_text(hash_of("next"))
            await takes(here, KEY, 401)
            await asyncio.sleep(3)
        assert set(counts) == {"whole"}, counts
        assert counts["whole"] > 20


@asynccontextmanager
async def clients(
    here: Machines, fronts: tuple[str, ...], models: tuple[str, ...] = MODELS
) -> AsyncIterator[Counter[str]]:
    """Let clients ask all the time; count how they are answered. They go to the other front if one refuses them."""
    counts: Counter[str] = Counter()
    is_over = asyncio.Event()

    async def client(number: int) -> None:
        for turn in itertools.count(number):
            if is_over.is_set():
                return
            model = models[turn % len(models)]
            body = {"model": model, "prompt": "[[tokens=10]] hi", "options": {"num_ctx": 2048}}
            first = turn % len(fronts)
            for front in (*fronts[first:], *fronts[:first]):
                try:
                    answer = await here.http.post(f"{here.urls[front]}/api/generate", json=body)
                except httpx.ConnectError:
                    continue
                is_whole = answer.status_code == 200 and '"done":true' in answer.text
                counts["whole" if is_whole else f"{answer.status_code} {answer.text[-200:]}"] += 1
                break
            else:
                counts["no front"] += 1

    asking = [asyncio.create_task(client(number)) for number in range(6)]
    yield counts
    is_over.set()
    await asyncio.gather(*asking)
