"""`ollama-router serve` in a process of its own, in front of an Ollama that a test scripts."""

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from tests.config.keys.play import record
from tests.fakes import request_bytes
from tests.http.raw_upstream import answer, raw_upstream

ROOT = Path(__file__).parents[3]
START_S = 60.0
ASK = request_bytes("POST", "/api/generate", json.dumps({"model": "m", "prompt": "hi"}))


class Served:
    """A router in a process of its own: where it listens, and the lines that it has logged before."""

    def __init__(self, process, url, lines):
        self.process, self.url, self.lines = process, url, lines

    def stop(self):
        """Ask it to stop."""
        self.process.send_signal(signal.SIGTERM)

    def reload(self):
        """Ask it to read its configuration again."""
        self.process.send_signal(signal.SIGHUP)

    async def says(self, text):
        """Wait for a line of its log that contains `text`, and return it."""
        while text not in (line := (await self.process.stderr.readline()).decode()):
            assert line, f"the router ended before it said {text!r}"
            self.lines.append(line.encode())
        self.lines.append(line.encode())
        return line

    async def log(self):
        """The messages of all lines that it has logged, once it has ended."""
        lines = [*self.lines, *(await self.process.stderr.read()).splitlines()]
        return [json.loads(line)["msg"] for line in lines if line.startswith(b"{")]


@asynccontextmanager
async def served(upstream, folder, *, file=None, options=("--listen", "127.0.0.1:0"), runner=(), fds=(), **config):
    """`ollama-router serve` in front of `upstream`, with further keys from the environment.

    `file` is its configuration file, `options` are put in place of the address, `runner` starts it.
    """
    keys = {"STORE__PATH": ":memory:", "BACKENDS__LOCAL__PROBE__KIND": "none", **config}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **{f"OLLAMA_ROUTER_{key}": value for key, value in keys.items()}}
    argv = [*runner, sys.executable, "-m", "router", "serve", *options, "--admin", "127.0.0.1:0"]
    argv += ["--upstream", upstream, *(("--config", str(file)) if file else ())]
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stderr=asyncio.subprocess.PIPE, cwd=folder, pass_fds=fds
    )
    try:
        async with asyncio.timeout(START_S):
            lines = [await process.stderr.readline()]
            while b"listens on " not in lines[-1]:
                assert lines[-1], "the router ended before it listened"
                lines.append(await process.stderr.readline())
        url, admin_url = lines[-1].decode().split("listens on ")[1].strip().split(", admin on ")
        await record(admin_url)
        yield Served(process, url, lines)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def ollama(script):
    """An Ollama without models whose inference is `script`; a model that it does not have is left to it."""
    facts = {b"/api/version": b'{"version":"0.33.0"}', b"/api/tags": b'{"models":[]}', b"/api/ps": b'{"models":[]}'}

    async def answers(visit):
        await (answer(facts[visit.target]) if visit.target in facts else script)(visit)

    return raw_upstream(answers)
