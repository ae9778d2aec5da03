"""Open files: the limit is raised, what it allows is shared out and said, and beyond it clients are told."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig, running_simulator
from router.cli.files import SPARE, within
from router.config import load_config
from router.http.server.shared import lingering
from tests.fakes import RawClient

ROOT = Path(__file__).parent.parent.parent
CONFIG = load_config(env={})


@pytest.mark.parametrize("files", [None, 2048 + lingering(2048) + 256 + SPARE, 1 << 20])
def test_enough_files_change_nothing(files: int | None) -> None:
    """Nothing is said, either."""
    assert within(CONFIG, files) == (CONFIG, "")


@pytest.mark.parametrize(("files", "clients", "pool"), [(2687, 2047, 256), (1024, 568, 256), (64, 12, 16), (1, 1, 1)])
def test_too_few_files_are_shared_out_and_said(files: int, clients: int, pool: int) -> None:
    """Half of them at least are for clients."""
    cut, warning = within(CONFIG, files)
    assert (cut.limits.connections, cut.limits.pool) == (clients, pool)
    assert f"may open {files} files" in warning
    assert f"{clients} of the 2048" in warning
    assert cut.limits.body_bytes == CONFIG.limits.body_bytes


@pytest.mark.parametrize("files", [40, 64, 200, 777, 1024, 2431, 2687])
def test_what_is_shared_out_is_no_more_than_there_is(files: int) -> None:
    """With the refused connections that stay open for a moment: each of them is an open file."""
    limits = within(CONFIG, files)[0].limits
    assert limits.connections + lingering(limits.connections) + limits.pool + min(SPARE, files // 2) <= files


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    """In a process of its own: there is no way back."""
    code = (
        "import resource as r; _, hard = r.getrlimit(r.RLIMIT_NOFILE); r.setrlimit(r.RLIMIT_NOFILE, (50, hard));"
        "from router.cli.files import raise_limit; print(raise_limit() or hard, *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    raised, soft, hard = map(int, said.split())
    assert raised == soft
    assert soft == (hard if 0 < hard <= 1 << 20 else 1 << 20)


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


@pytest.mark.slow
@pytest.mark.real_time
async def test_without_files_clients_get_503_and_the_router_recovers_j7(tmp_path: Path) -> None:
    """With 64 files: one answer for each connection, no busy loop, and service when the others have left."""
    async with running_simulator(SimConfig(machine=Machine(cards=(CardSpec(),)), models=("llama3.2:3b",))) as sim:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OLLAMA_ROUTER_STORE__PATH": ":memory:"}
        argv = [sys.executable, "-m", "router", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        process = await asyncio.create_subprocess_exec(
            *argv, "--upstream", sim.url, env=env, stderr=asyncio.subprocess.PIPE, cwd=tmp_path, preexec_fn=few_files
        )
        assert process.stderr is not None
        try:
            lines = []
            async with asyncio.timeout(60):
                while b"listens on" not in (line := await process.stderr.readline()):
                    assert line, "the router ended before it listened"
                    lines.append(line)
            assert any(b"may open 64 files" in line for line in lines)
            url, admin = (part.rpartition(":")[2].strip() for part in line.decode().split(", admin on "))
            await many_connections(int(url), int(admin), process.pid)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()


async def many_connections(port: int, admin: int, pid: int) -> None:
    raws = [await RawClient.to(port) for _ in range(60)]
    half = b"POST /api/chat HTTP/1.1\r\nHost: x.local\r\nContent-Length: 10\r\n\r\n"
    for raw in raws:
        with suppress(ConnectionError):
            await raw.send(half)
    refused = 0
    for raw in raws:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5 if refused < 40 else 0.01):
                reply = await raw.reply()
                assert reply.status == 503
                assert "server busy" in json.loads(reply.body)["error"]
                refused += 1
    assert refused >= 40
    router = psutil.Process(pid)
    ready = await RawClient.to(admin)
    assert (await ready.ask("GET", "/healthz")).status == 200
    before_s = sum(router.cpu_times()[:2])
    await asyncio.sleep(1)
    assert sum(router.cpu_times()[:2]) - before_s < 0.5
    for raw in (*raws, ready):
        raw.close()
    await asyncio.sleep(0.5)
    again = await RawClient.to(port)
    assert (await again.ask("GET", "/api/version")).status == 200
    again.close()
