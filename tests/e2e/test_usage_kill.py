"""Usage and audit agree to the token, also after kill −9 and a restart: what is missing is of the last seconds (T6)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.config.keys.play import send
from tests.config.keys.process import ollama
from tests.e2e.waiting import until
from tests.http.raw_upstream import answer

pytestmark = pytest.mark.real_time

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 90.0
EVERY_S = 1.0
TOKENS_IN, TOKENS_OUT = 7, 11
DONE = answer(
    json.dumps({"response": "a", "done": True, "prompt_eval_count": TOKENS_IN, "eval_count": TOKENS_OUT}).encode()
)
BODY = {"model": "m", "prompt": "secret words", "stream": False}


@asynccontextmanager
async def router(upstream, folder):
    """Provide a router in a process of its own with the accounts in `folder`, and its URL; it is killed at the end."""
    settings = {
        "STORE__PATH": ":memory:",
        "USAGE__PATH": str(folder / "usage.sqlite"),
        "USAGE__EVERY_S": str(EVERY_S),
        "AUDIT__PATH": str(folder / "audit.jsonl"),
    }
    env = {**os.environ, "PYTHONPATH": str(ROOT), **{f"OLLAMA_ROUTER_{key}": value for key, value in settings.items()}}
    argv = [sys.executable, "-m", "router", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        *argv, "--upstream", upstream, env=env, stderr=asyncio.subprocess.PIPE, cwd=folder
    )
    try:
        while b"listens on" not in (line := await process.stderr.readline()):
            assert line, "the router ended before it listened"
        yield process, line.decode().split("listens on ")[1].split(",")[0]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ask(url, count):
    """Send requests, a few at a time; return how many were answered."""
    replies = await asyncio.gather(*(send(url, "POST", "/api/generate", BODY) for _ in range(count)))
    return sum(reply.status == 200 for reply in replies)


def used(folder):
    """Return requests and tokens by the usage."""
    path = folder / "usage.sqlite"
    if not path.exists():
        return 0, 0, 0
    with closing(sqlite3.connect(path)) as file:
        sums = "COALESCE(SUM(requests), 0), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0)"
        try:
            return file.execute(f"SELECT {sums} FROM usage").fetchone()
        except sqlite3.OperationalError:  # the table is being made
            return 0, 0, 0


def audited(folder):
    """Return requests and tokens by the audit."""
    path = folder / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return len(lines), sum(line["tokens_in"] for line in lines), sum(line["tokens_out"] for line in lines)


async def test_usage_is_the_sum_of_the_audit_after_kill_9_and_a_restart_t6(tmp_path):
    """Never twice; what was written a while ago is never missing; a stop loses nothing."""
    async with asyncio.timeout(DEADLINE_S), ollama(DONE) as upstream:
        async with router(upstream.url, tmp_path) as (process, url):
            assert await ask(url, 30) == 30
            await until(lambda: used(tmp_path)[0] == audited(tmp_path)[0] == 30)
            assert await ask(url, 10) == 10  # of the last second
            process.send_signal(signal.SIGKILL)
            await process.wait()
        requests, tokens_in, tokens_out = used(tmp_path)
        assert (tokens_in, tokens_out) == (requests * TOKENS_IN, requests * TOKENS_OUT)
        assert 30 <= requests <= audited(tmp_path)[0] + 10
        lost = 40 - requests
        async with router(upstream.url, tmp_path) as (process, url):
            assert await ask(url, 20) == 20
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert used(tmp_path) == tuple(count * (60 - lost) for count in (1, TOKENS_IN, TOKENS_OUT))
        seen = audited(tmp_path)
        assert 50 <= seen[0] <= 60
        assert seen == tuple(count * seen[0] for count in (1, TOKENS_IN, TOKENS_OUT))
    assert b"secret words" not in (tmp_path / "audit.jsonl").read_bytes()
