"""SIGKILL of the router during a switch, and the state that the next router finds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, running_simulator
from router.adapters.ollama import OllamaClient
from router.core.ollama.derived_names import is_derived
from router.errors import UpstreamError
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamRequest

ROOT = Path(__file__).parent.parent.parent
MODEL = "llama3.2:3b"
DEADLINE_S = 60.0
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "[[tokens=2]] hi"}]}).encode()


async def started(upstream, tmp_path):
    """Start a router in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OLLAMA_ROUTER_STORE__PATH": str(tmp_path / "learned.sqlite")}
    argv = [sys.executable, "-m", "router", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    return await asyncio.create_subprocess_exec(
        *argv, "--upstream", upstream, env=env, stderr=asyncio.subprocess.PIPE, cwd=tmp_path
    )


async def serve(upstream, tmp_path):
    """Run a router in a process of its own; return the process and the URL."""
    process = await started(upstream, tmp_path)
    async with asyncio.timeout(DEADLINE_S):
        while b"listens on" not in (line := await process.stderr.readline()):
            assert line, "the router ended before it listened"
    return process, line.decode().split("listens on ")[1].split(",")[0]


async def ask(url):
    """Send a /v1 request, which needs a derived tag; return its status, 0 if the router died."""
    client = HttpRelay(url)
    try:
        request = UpstreamRequest(b"POST", b"/v1/chat/completions", [], BODY, len(BODY))
        answer = await client.open(request)
        while await answer.read():
            pass
        return answer.status
    except UpstreamError:
        return 0
    finally:
        await client.aclose()


@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.parametrize("killed_at", ["starting", "loaded"], ids=["while it loads", "once it is loaded"])
async def test_the_next_router_continues_where_a_killed_one_stopped(killed_at, tmp_path):
    """A loaded model is not loaded again, and no derived tag remains."""
    loads, is_time = [], asyncio.Event()

    def on_event(what, name, _):
        if what == "loaded":
            loads.append(name)
        if what == killed_at:
            is_time.set()

    speeds = Speeds(load_mib_per_s=4000, tokens_per_s=100)
    machine = Machine(cards=(CardSpec(),), speeds=speeds)
    config = SimConfig(machine=machine, models=(MODEL,), on_event=on_event)
    async with running_simulator(config) as sim:
        first, url = await serve(sim.url, tmp_path)
        asked = asyncio.create_task(ask(url))
        await asyncio.wait_for(is_time.wait(), DEADLINE_S)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        await asked
        loaded_before = list(loads)
        second, url = await serve(sim.url, tmp_path)
        try:
            assert await ask(url) == 200
            assert len(loads) <= max(1, len(loaded_before))
        finally:
            second.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(second.wait(), DEADLINE_S) == 0
        client = OllamaClient(sim.url)
        assert not [row["name"] for row in await client.tags() if is_derived(row["name"])]
        await client.aclose()


@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_start_that_waits_for_ollama(number, tmp_path):
    """At once and cleanly, although Ollama accepts connections and answers nothing."""
    asked = asyncio.Event()

    async def accept(reader, writer):
        asked.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    process = await started(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", tmp_path)
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
        process.send_signal(number)
    async with asyncio.timeout(8.0):  # less than the time that its requests to Ollama may take
        assert await process.wait() == 0
    assert b"Traceback" not in await process.stderr.read()
    server.close()
