"""Two routers behind nginx are restarted one after the other, as an operator upgrades them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig, running_simulator

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [pytest.mark.real_time, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 120.0
MODEL = "llama3.2:3b"
CLIENTS = 12
CONF = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream routers {{ server 127.0.0.1:{first} max_fails=0; server 127.0.0.1:{second} max_fails=0; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://routers; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host localhost; proxy_buffering off; proxy_read_timeout 600;
    }}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Load:
    """Clients that ask again and again until `stop`, and what they got."""

    url: str
    statuses: Counter[int | str] = field(default_factory=Counter)
    is_over: bool = False

    async def client(self, *, is_streamed: bool) -> None:
        body = {"model": MODEL, "prompt": "x", "stream": is_streamed, "options": {"num_predict": 20}}
        async with httpx.AsyncClient(timeout=60) as http:
            while not self.is_over:
                try:
                    answer = await http.post(f"{self.url}/api/generate", json=body)
                    is_whole = b'"done":true' in answer.content
                    self.statuses[answer.status_code if is_whole else f"{answer.status_code}, cut"] += 1
                except httpx.HTTPError as exc:
                    self.statuses[repr(exc)] += 1

    async def served(self, count: int) -> None:
        """Return when so many more requests have been answered."""
        aim = self.statuses.total() + count
        while self.statuses.total() < aim:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def started(port: int, upstream: str, folder: Path) -> Process:
    """Start a router and return when it is ready."""
    admin = free_port()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OLLAMA_ROUTER_STORE__PATH": ":memory:"}
    argv = [sys.executable, "-m", "router", "serve", "--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    with (folder / f"router-{port}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, "--upstream", upstream, env=env, stderr=log, cwd=folder)
    async with httpx.AsyncClient() as http:
        while True:
            assert process.returncode is None, (folder / f"router-{port}.log").read_text()
            try:
                if (await http.get(f"http://127.0.0.1:{admin}/readyz")).status_code == 200:
                    return process
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


@asynccontextmanager
async def nginx(folder: Path, first: int, second: int) -> AsyncIterator[str]:
    assert NGINX is not None
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(CONF.format(folder=folder, first=first, second=second, port=port))
    process = await asyncio.create_subprocess_exec(NGINX, "-p", str(folder), "-c", str(file))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_two_routers_behind_nginx_restart_one_after_the_other_without_a_failed_request_d6(tmp_path: Path) -> None:
    """Under streams and whole answers; each router is told to stop, and begins again on its address."""
    ports = free_port(), free_port()
    machine = Machine(cards=(CardSpec(),))
    async with (
        asyncio.timeout(DEADLINE_S),
        running_simulator(SimConfig(machine=machine, models=(MODEL,))) as sim,
        nginx(tmp_path, *ports) as url,
    ):
        routers = [await started(port, sim.url, tmp_path) for port in ports]
        load = Load(url)
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(load.client(is_streamed=number % 2 == 0))
            await load.served(CLIENTS)
            for place, port in enumerate(ports):
                routers[place].send_signal(signal.SIGTERM)
                await load.served(2 * CLIENTS)
                assert await routers[place].wait() == 0
                routers[place] = await started(port, sim.url, tmp_path)
                await load.served(2 * CLIENTS)
            load.is_over = True
        for router in routers:
            router.terminate()
            await router.wait()
    assert set(load.statuses) == {200}, load.statuses
