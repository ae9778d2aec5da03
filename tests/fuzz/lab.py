"""The place where a surface is fuzzed: the router in a process, an upstream that says what it is told, raw clients."""

from __future__ import annotations

import asyncio
import json
import math
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ollama_simulator.machine.spec import CardSpec, Machine, Speeds
from ollama_simulator.server import SimConfig, SimulatedOllama, running_simulator

ROOT = Path(__file__).parent.parent.parent
MODEL = "llama3.2:3b"

MOST_LAG_S = 0.025
"""On a processor for which `WORK` takes `WORK_S`."""

HOLDS = ("lag_s", "by_loop_s", "late_s")
"""How long the loop was held: see `router_process.Lag`."""

WORK, WORK_S = 1_000_000, 0.025
TRIES = 4
DEADLINE_S = 120.0
GROWTH_BYTES = 48 << 20
"""Of a run's second half; in a short run the first large inputs count."""


def slowness() -> float:
    """Return how many times slower than the reference this processor is, at least 1."""
    started_s = time.process_time()
    sum(range(WORK))
    return max(1.0, (time.process_time() - started_s) / WORK_S)


class Lab:
    """A router that runs with `options`."""

    def __init__(self, options: Mapping[str, object]) -> None:
        argv = [sys.executable, "-m", "tests.fuzz.router_process", json.dumps(options)]
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = self._said()
        self.port, self.admin_port = (int(str(urlsplit(said[key]).port)) for key in ("url", "admin"))
        self._slowness = slowness()
        self.state()
        self.base: dict[str, Any] = {}

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], DEADLINE_S)[0]:
            self._process.send_signal(signal.SIGUSR1)
            raise AssertionError("the router hangs")
        line = self._process.stdout.readline()
        assert line, "the router has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def state(self) -> dict[str, Any]:
        """Return the state of the router, and what has happened since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._said()

    def check(self) -> dict[str, Any]:
        """Assert that nothing has failed since the last call."""
        state = self.state()
        assert state["faults"] == []
        assert state["twice"] == []
        return state

    def check_lag(self, again: Callable[[], None], note: Callable[[str], None]) -> dict[str, Any]:
        """Assert the same, and that the loop was not held: not by chance, but each time that it is done again.

        `note` is called with how long it was held, each time that it was.
        """
        for _ in range(TRIES):
            state = self.check()
            if state["lag_s"] <= MOST_LAG_S * self._slowness:
                return state
            held = " ".join(f"{name}={state[name] * 1000:.1f}ms" for name in HOLDS)
            note(f"{held} slowness={self._slowness:.2f}")
            self._slowness = max(self._slowness, slowness())
            again()
        raise AssertionError(f"the loop was held: {held}")

    def settle(self) -> None:
        """Remember what is held when the router has warmed up."""
        self.base = self._quiet()

    def check_growth(self, most_bytes: int = GROWTH_BYTES) -> None:
        """Assert that nothing of all that was asked is left."""
        most_tasks = self.base["tasks"] + 4
        state = self._quiet(most_tasks)
        assert state["connections"] <= self.base["connections"]
        assert state["tasks"] <= most_tasks
        grown = state["rss_bytes"] - self.base["rss_bytes"]
        assert grown < most_bytes, f"{grown >> 20} MiB more"

    def _quiet(self, most_tasks: float = math.inf) -> dict[str, Any]:
        """Return the state once no connection is left, and at most so many tasks; at the deadline as it is."""
        until_s = time.monotonic() + DEADLINE_S
        while (state := self.check())["connections"] or state["tasks"] > most_tasks:
            if time.monotonic() >= until_s:
                break
            time.sleep(0.05)
        return state

    def ask(self, data: bytes, *, ends: bool = True) -> bytes:
        """Send `data` on a connection of its own, end it unless not `ends`, and return all that is answered."""
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE_S) as sock:
            parts = []
            try:
                sock.sendall(data)
                if ends:
                    sock.shutdown(socket.SHUT_WR)
                while part := sock.recv(1 << 16):
                    parts.append(part)
            except OSError:  # it has been ended already
                pass
            return b"".join(parts)

    def post(self, target: str, body: bytes, method: str = "POST", *headers: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to one request, which must be answered once and whole."""
        lines = [
            b"%b %b HTTP/1.1" % (method.encode(), target.encode()),
            b"Host: x.local",
            b"Connection: close",
            *headers,
        ]
        head = b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""])
        said = self.ask(head + body, ends=False)
        while said.startswith(b"HTTP/1.1 100"):
            said = said.partition(b"\r\n\r\n")[2]
        head, gap, answer = said.partition(b"\r\n\r\n")
        assert gap, said[:200]
        return int(head.split(b" ", 2)[1]), answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(DEADLINE_S) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


class Scripted:
    """An upstream in a thread: the answer to each path is the bytes set for it, and then the connection ends."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(DEADLINE_S)
            data = b""
            try:
                while b"\r\n\r\n" not in data:
                    data += sock.recv(1 << 16) or exit_thread()
                path = data.split(b" ", 2)[1].decode()
                sock.sendall(self.answers.get(path, plain(b'{"error":"not found"}', 404)))
                self.asked[path] += 1
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
            except (OSError, EOFError):
                return

    def wait_until_asked(self, path: str, times: int = 1) -> None:
        """Wait until `path` was asked for so many times more."""
        wanted, until_s = self.asked[path] + times, time.monotonic() + DEADLINE_S
        while self.asked[path] < wanted:
            assert time.monotonic() < until_s, f"{path} is not asked for any more"
            time.sleep(0.002)

    def close(self) -> None:
        self._listening.close()


def exit_thread() -> bytes:
    raise EOFError


def plain(body: bytes, status: int = 200, kind: bytes = b"application/json") -> bytes:
    """Return an answer with its length."""
    head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


@contextmanager
def simulated() -> Iterator[SimulatedOllama]:
    """Run a simulated Ollama in a thread, with one model and a runner that takes no time."""
    speeds = Speeds(load_mib_per_s=1e6, tokens_per_s=1e6, prompt_tokens_per_s=1e9)
    config = SimConfig(machine=Machine(cards=(CardSpec(),), speeds=speeds), models=(MODEL,), keep_seen=10)
    loop, started = asyncio.new_event_loop(), threading.Event()
    stop, sims = asyncio.Event(), list[SimulatedOllama]()

    async def run() -> None:
        async with running_simulator(config) as sim:
            sims.append(sim)
            started.set()
            await stop.wait()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(DEADLINE_S)
    try:
        yield sims[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
