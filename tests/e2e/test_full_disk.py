"""A disk that is full costs no request, is said, and is written to again when there is room."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig, running_simulator
from tests.e2e.waiting import until

pytestmark = pytest.mark.real_time

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 90.0
MODELS = ("llama3.2:3b", "mistral:7b", "llama3.1:8b")


@dataclass
class Scene:
    """A router in a process of its own: its URLs, and the folder of its files."""

    client: httpx.AsyncClient
    url: str
    admin: str
    pid: int
    folder: Path

    def leave_room(self, size_bytes: int) -> None:
        """Let the router write no file beyond this size, as on a disk with so much room."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))

    async def chat(self, model: str) -> int:
        body = {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": 1}}
        return (await self.client.post(f"{self.url}/api/generate", json=body)).status_code

    async def forget(self) -> int:
        answer = await self.client.post(f"{self.admin}/router/forget", headers={"x-router-admin": "test"})
        return answer.status_code

    async def stores_up(self) -> dict[str, str]:
        lines = (await self.client.get(f"{self.admin}/metrics")).text.splitlines()
        found = (line.partition("ollama_router_store_up{store=")[2].split("} ") for line in lines)
        return {one[0].strip('"'): one[1] for one in found if len(one) == 2}

    def used(self) -> int:
        with closing(sqlite3.connect(self.folder / "usage.sqlite")) as file:
            return int(file.execute("SELECT COALESCE(SUM(requests), 0) FROM usage").fetchone()[0])

    def learned(self) -> int:
        with closing(sqlite3.connect(self.folder / "learned.sqlite")) as file:
            return int(file.execute("SELECT COUNT(*) FROM observations").fetchone()[0])

    def audited(self) -> int:
        return len([json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()])


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    settings = {
        "STORE__PATH": str(folder / "learned.sqlite"),
        "USAGE__PATH": str(folder / "usage.sqlite"),
        "USAGE__EVERY_S": "0.2",
        "AUDIT__PATH": str(folder / "audit.jsonl"),
        "BACKENDS__LOCAL__PROBE__KIND": "none",
    }
    env = {**os.environ, "PYTHONPATH": str(ROOT), **{f"OLLAMA_ROUTER_{key}": value for key, value in settings.items()}}
    argv = [sys.executable, "-m", "router", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    machine = Machine(cards=(CardSpec(),))
    async with (
        running_simulator(SimConfig(machine=machine, models=MODELS)) as sim,
        httpx.AsyncClient(timeout=60) as http,
    ):
        process = await asyncio.create_subprocess_exec(
            *argv, "--upstream", sim.url, env=env, stderr=asyncio.subprocess.PIPE, cwd=folder
        )
        assert process.stderr is not None
        while b"listens on" not in (line := await process.stderr.readline()):
            assert line, "the router ended before it listened"
        reading = asyncio.create_task(process.stderr.read())
        urls = [part.rpartition(" ")[2].strip() for part in line.decode().split(", admin on ")]
        try:
            yield Scene(http, *urls, process.pid, folder)
        finally:
            process.terminate()
            (folder / "log").write_bytes(await reading)
            await process.wait()


async def test_a_full_disk_costs_no_request_and_the_usage_of_that_time_is_written_later_j7(tmp_path: Path) -> None:
    """Loads and answers go on; what could not be measured to disk is said once, and the audit counts what it lacks."""
    async with asyncio.timeout(DEADLINE_S), scene(tmp_path) as router:
        small, middle, big = MODELS
        assert await router.chat(small) == 200
        await until(lambda: _is(router.used() == router.learned() == router.audited() == 1))
        router.leave_room(0)
        assert [await router.chat(name) for name in (small, middle, small)] == [200, 200, 200]
        await until(lambda: _are_up(router, {"usage": "0.0", "learned": "0.0"}))
        assert await router.chat(small) == 200
        router.leave_room(1 << 30)
        assert await router.chat(big) == 200
        assert await router.forget() == 200
        await until(lambda: _are_up(router, {"usage": "1.0", "learned": "1.0"}))
        await until(lambda: _is(router.used() == 6))
        assert await router.chat(small) == 200
        await until(lambda: _is(router.audited() >= 2))
        lost = (await router.client.get(f"{router.admin}/metrics")).text.partition("\nollama_router_audit_lost_total ")[
            2
        ]
        assert float(lost.splitlines()[0]) > 0
    warnings = [
        json.loads(line)["msg"] for line in (tmp_path / "log").read_bytes().splitlines() if b'"warning"' in line
    ]
    for store in ("usage", "learned store"):
        assert len([text for text in warnings if text.startswith(f"the {store} ") and "cannot be used" in text]) == 1
    assert b"Traceback" not in (tmp_path / "log").read_bytes()


async def _is(fact: bool) -> bool:
    return fact


async def _are_up(router: Scene, wanted: dict[str, str]) -> bool:
    return await router.stores_up() == wanted
