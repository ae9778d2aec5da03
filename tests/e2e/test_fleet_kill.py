"""Two Ollamas in processes of their own: one is killed under streams."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import answering, free_port, process

pytestmark = pytest.mark.real_time

DEADLINE_S = 120.0
BIG, SMALL = "gpt-oss:20b", "llama3.2:3b"
STREAMS = 5


async def stream(http: httpx.AsyncClient, url: str, model: str) -> tuple[str, str]:
    """Ask for a long answer; return the backend that gave it, and its last line."""
    body = {"model": model, "prompt": "[[tokens=150]] hello", "options": {"num_ctx": 2048}}
    async with http.stream("POST", f"{url}/api/generate", json=body) as answer:
        lines = [line async for line in answer.aiter_lines() if line]
        return answer.headers["x-router-backend"], lines[-1]


async def test_a_backend_that_is_killed_breaks_only_its_own_streams_and_requests_go_on(tmp_path: Path) -> None:
    """Those of the other end as if nothing had happened; what it held is loaded by the other."""
    async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=100))
        backends, killed = {}, {}
        for name, size in (("desk", "12288"), ("tower", "24564")):
            port, metrics = free_port(), free_port()
            argv = ("simulate", "--gpu", size, "--models", f"{BIG},{SMALL}", "--listen", f"127.0.0.1:{port}")
            speeds = ("--load-mib-per-s", "20000", "--tokens-per-s", "30", "--parallel", str(STREAMS))
            killed[name] = await stack.enter_async_context(
                process(*argv, *speeds, "--gpu-metrics", f"127.0.0.1:{metrics}", says=b"127.0.0.1")
            )
            await answering(http, f"http://127.0.0.1:{port}/api/version")
            probe = {"kind": "prometheus", "url": f"http://127.0.0.1:{metrics}/metrics"}
            server = {"num_parallel": STREAMS}
            backends[name] = {"url": f"http://127.0.0.1:{port}", "probe": probe, "server": server}
        port = free_port()
        config = {
            "listen": f"127.0.0.1:{port}", "admin": "127.0.0.1:0", "store": {"path": ":memory:"},
            "defaults": {"auto_chains": "off"}, "backends": backends,
        }  # fmt: skip
        (tmp_path / "router.yaml").write_text(json.dumps(config))
        await stack.enter_async_context(process("serve", "--config", str(tmp_path / "router.yaml"), says=b"listens on"))
        url = f"http://127.0.0.1:{port}"
        streams = [asyncio.create_task(stream(http, url, model)) for model in (BIG, SMALL) for _ in range(STREAMS)]
        while len((await http.get(f"{url}/api/ps")).json()["models"]) < 2:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        killed["desk"].kill()
        found = await asyncio.gather(*streams)
        whole = {(backend, '"done":true' in last) for backend, last in found}
        assert whole == {("tower", True), ("desk", False)}
        backend, last = await stream(http, url, SMALL)
        assert (backend, '"done":true' in last) == ("tower", True)
        ready = (await http.get(f"{url}/readyz")).json()
        assert (ready["ready"], ready["backends"]["desk"]["ready"]) == (True, False)
