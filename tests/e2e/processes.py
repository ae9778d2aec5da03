"""Commands of the router in processes of their own."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def process(*argv: str, says: bytes) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command until the context ends; it is ready when its output has a line with `says`."""
    found = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router", *argv, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert found.stdout is not None
    while says not in (line := await found.stdout.readline()):
        assert line, f"{argv} ended before it was ready"
    reading = asyncio.create_task(found.stdout.read())
    try:
        yield found
    finally:
        if found.returncode is None:
            found.terminate()
        await reading
        await found.wait()


async def answering(http: httpx.AsyncClient, url: str) -> None:
    """Wait until a server answers."""
    while True:
        try:
            await http.get(url)
        except httpx.TransportError:
            await asyncio.sleep(0.1)
        else:
            return
