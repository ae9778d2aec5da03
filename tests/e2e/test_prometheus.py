"""A real Prometheus in front of a running router: what it scrapes, and the expressions of dashboard and alerts.

Skipped without it (Debian: `apt-get install prometheus`).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from ollama_simulator.machine.probe import CardsProbe
from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, running_simulator
from router.app import Running, running
from router.config import load_config
from tests.telemetry.test_observability import ALERTS, FOLDER, expressions

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None or PROMTOOL is None, reason="no Prometheus"),
]
BIG, SMALL = "llama3.3:70b-instruct-q4_K_M", "llama3.1:8b"
DEADLINE_S = 60.0
ONLY_AFTER_FAULTS = {
    "Refused by limit", "Errors", "Served by another variant", "Switches", "Under way", "State", "Lead of teams",
    "Duration of a switch, p95", "Error of the estimate, median",
}  # fmt: skip
"""Panels of which some expressions have no series before something has gone wrong, or teams compete."""


def test_prometheus_takes_the_rules_and_they_fire_as_described() -> None:
    """`promtool check rules` and `promtool test rules`."""
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run([str(PROMTOOL), *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@asynccontextmanager
async def router_and_prometheus(folder: Path) -> AsyncIterator[tuple[Running, str]]:
    """Run both; yield the router and the URL of Prometheus, which scrapes it every half second."""
    machine = Machine(cards=(CardSpec(name="CUDA0", total_mib=24564),), speeds=Speeds(load_mib_per_s=40_000))
    async with running_simulator(SimConfig(machine=machine, models=(BIG, SMALL))) as sim:
        options = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "backends.local.url": sim.url,
            "store.path": ":memory:",
        }
        async with running(load_config(env={}, options=options), probe=CardsProbe(sim.cards), is_probed=True) as router:
            target = urlsplit(router.admin_url).netloc
            jobs = [{"job_name": "router", "static_configs": [{"targets": [target]}]}]
            about = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": jobs}
            (folder / "prometheus.yml").write_text(json.dumps(about))
            process, url = await prometheus(folder)
            try:
                yield router, url
            finally:
                process.terminate()
                await process.wait()


async def prometheus(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    """Start Prometheus on a free port, and return it with its URL when it answers queries.

    Until it has read its data it answers them by a text. Another port is taken if somebody else was quicker.
    """
    async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient() as client:
        while True:
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                str(PROMETHEUS),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            while process.returncode is None:
                try:
                    ready = await client.get(f"http://127.0.0.1:{port}/-/ready")
                except httpx.TransportError:
                    pass
                else:
                    if ready.status_code == 200 and "Prometheus" in ready.text:
                        return process, f"http://127.0.0.1:{port}"
                await asyncio.sleep(0.1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def asked(url: str, expression: str) -> list[object]:
    """Return the result of an expression now. Fails if Prometheus cannot evaluate it."""
    query = expression.replace("$__rate_interval", "1m")
    async with httpx.AsyncClient(timeout=DEADLINE_S) as client:
        answer = (await client.get(f"{url}/api/v1/query", params={"query": query})).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[object] = answer["data"]["result"]
    return found


async def until_scraped(url: str) -> None:
    """Wait until a rate over what was scraped can be computed."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if await asked(url, "rate(ollama_router_decisions_total[1m]) > 0"):
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)


async def empty_after(url: str, seconds: float) -> set[str]:
    """Return the expressions that have no series, as soon as only those may have none, or at the end of the time."""
    until_s = asyncio.get_running_loop().time() + seconds
    while True:
        empty = {name for name, expression in expressions() if not await asked(url, expression)}
        empty -= ONLY_AFTER_FAULTS | {rule["alert"] for rule in ALERTS}
        if not empty or asyncio.get_running_loop().time() >= until_s:
            return empty
        await asyncio.sleep(0.5)


async def test_every_panel_and_alert_is_evaluated_by_a_real_prometheus_v1(tmp_path: Path) -> None:
    """With data, where nothing must have gone wrong for it."""
    async with router_and_prometheus(tmp_path) as (router, url), httpx.AsyncClient(timeout=60) as client:
        asking = True

        async def ask() -> None:
            while asking:
                for model in (BIG, SMALL):
                    body = {"model": model, "prompt": "[[tokens=3]] hello"}
                    await client.post(f"{router.url}/api/generate", json=body)
                await asyncio.sleep(0.05)

        traffic = asyncio.create_task(ask())
        await until_scraped(url)
        empty = await empty_after(url, DEADLINE_S)
        asking = False
        await traffic
        page = (await client.get(f"{router.admin_url}/metrics")).content
    assert empty == set()
    linted = await asyncio.create_subprocess_exec(
        str(PROMTOOL), "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    said = await linted.communicate(page)
    assert linted.returncode == 0, said
