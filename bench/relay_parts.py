"""The processes of `bench/relay.py`: a simulated Ollama, a streamer, nginx as upstream and as proxy, the router itself.

Each role is one process, pinned to a core by its parent: `python bench/relay_parts.py ROLE …`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvloop

HELD = b"held "
MODEL = "llama3.2:1b"
MESSAGES = [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}]
CHAT = json.dumps({"model": MODEL, "messages": MESSAGES, "stream": False, "options": {"temperature": 0.7}})
ANSWER = json.dumps(
    {
        "model": MODEL,
        "created_at": "2026-11-23T01:15:02.427208004Z",
        "message": {"role": "assistant", "content": "Short waves scatter more than long ones."},
        "done": True,
        "done_reason": "stop",
        "total_duration": 7480249,
        "load_duration": 1242706,
        "prompt_eval_count": 31,
        "prompt_eval_duration": 3609000,
        "eval_count": 11,
        "eval_duration": 1000000,
    },
    separators=(",", ":"),
)
NGINX = """
worker_processes 1; daemon off; pid {dir}/pid; error_log {dir}/error.log crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 0;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s;
  {body}
}}
"""


@dataclass
class Process:
    """A child process; `pid` is that of the process that does the work (nginx's worker)."""

    child: subprocess.Popen[bytes]
    pid: int

    def cpu_s(self) -> float:
        """Return the CPU time of all its threads that live; not in ticks: one is 1 % of a burst of a second."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def wait_port(port: int, timeout_s: float = 30.0) -> None:
    import socket

    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise SystemExit(f"no process listens on port {port}")


@contextmanager
def started(command: list[str], port: int, core: int) -> Iterator[Process]:
    """Run a child, pinned to a core, that listens on `port`."""
    child = subprocess.Popen(
        ["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_port(port)
        yield Process(child, child.pid)
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


def worker_of(pid: int, timeout_s: float = 10.0) -> int:
    """Return nginx's worker: its port is open before there is one."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False, text=True).stdout.split()
        if found:
            return int(found[0])
        time.sleep(0.02)
    raise SystemExit("nginx has no worker")


@contextmanager
def nginx(body: str, port: int, core: int) -> Iterator[Process]:
    if shutil.which("nginx") is None:
        raise SystemExit("nginx is missing: apt-get install nginx-light")
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder, "nginx.conf")
        conf.write_text(NGINX.format(dir=folder, body=body))
        with started(["nginx", "-c", str(conf)], port, core) as process:
            yield Process(process.child, worker_of(process.pid))


def upstream_conf(port: int, simulator: int, streamer: int | None, *, echo: bool = True) -> str:
    """Return nginx's configuration as upstream: chats are answered by it or the streamer, the rest by the simulator.

    With `echo` the head of an answer repeats the request's trace.
    """
    if streamer is None:
        echoed = "add_header X-Trace $http_traceparent; " if echo else ""
        chat = f"default_type application/json; {echoed}return 200 '{ANSWER}';"
    else:
        chat = f"proxy_pass http://127.0.0.1:{streamer};"
    return f"""server {{ listen 127.0.0.1:{port};
      location = /api/chat {{ {chat} }}
      location / {{ proxy_pass http://127.0.0.1:{simulator}; }} }}"""


def proxy_conf(port: int, upstream: int) -> str:
    return f"""upstream ollama {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000; }}
      server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://ollama; }} }}"""


def python(role: str, *arguments: int) -> list[str]:
    return [sys.executable, __file__, role, *map(str, arguments)]


# The roles


async def simulate(port: int) -> None:
    from ollama_simulator.server import SimConfig, running_simulator

    async with running_simulator(SimConfig(gpus_mib=(24564,), models=(MODEL, "llama3.2:3b")), port=port):
        await asyncio.Event().wait()


async def route(port: int, upstream: int, admin: int = 0, collector: int = 0, percent: int = 100) -> None:
    """Run the router with all features: decisions, telemetry, limits, and the log as `serve` writes it.

    With the port of a `collector` it sends traces of `percent` of the requests there.

    For each SIGUSR1 it writes a line to stderr with what it holds: `HELD` and JSON.
    """
    from router.app import Running, running
    from router.cli.garbage import calm_collector
    from router.config import Config
    from router.telemetry import LineWriter, LogHook

    card = {"name": "bench", "total_mib": 24564, "free_mib": 22000}
    otlp = {
        "endpoint": f"http://127.0.0.1:{collector}",
        "sample": percent / 100,
        "max_waiting": 100_000,
    }  # none is lost
    config = Config.model_validate(
        {
            "listen": f"127.0.0.1:{port}",
            "admin": f"127.0.0.1:{admin}",
            "backends": {"local": {"url": f"http://127.0.0.1:{upstream}", "probe": {"kind": "static", "gpus": [card]}}},
            "limits": {"pool": 2048, "connections": 4096},
            "store": {"path": ":memory:"},
            "telemetry": {"otlp": otlp} if collector else {},
        }
    )

    def report(service: Running) -> None:
        held = {
            "tasks": len(asyncio.all_tasks()),
            "connections": service.clients.open_connections + service.admin.open_connections,
            "upstream": service.router.backend.relay.open_connections,  # type: ignore[attr-defined]
        }
        os.write(2, HELD + json.dumps(held).encode() + b"\n")

    async with running(config, hooks=[LogHook(sink=LineWriter())]) as service:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, report, service)
        calm_collector()
        await asyncio.Event().wait()


async def collect(port: int) -> None:
    """Take OTLP over HTTP, and answer as a collector does that keeps nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def stream(port: int) -> None:
    """Serve chunks with their send time: the prompt `idle` gets one chunk and a pause, `N` gets N at 20 per second."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                await answer(writer, body["messages"][0]["content"])
        writer.close()

    async def answer(writer: asyncio.StreamWriter, order: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1 if order == "idle" else int(order)):
            send(writer, done=False)
            await asyncio.sleep(3600 if order == "idle" else 0.05)
        send(writer, done=True)
        writer.write(b"0\r\n\r\n")

    def send(writer: asyncio.StreamWriter, *, done: bool) -> None:
        line = b'{"model":"%b","at_ns":%d,"done":%b}\n' % (
            MODEL.encode(),
            time.monotonic_ns(),
            b"true" if done else b"false",
        )
        writer.write(b"%x\r\n%b\r\n" % (len(line), line))

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    roles = {"simulate": simulate, "route": route, "stream": stream, "collect": collect}
    run = asyncio.run if sys.argv[1] == "simulate" else uvloop.run
    run(roles[sys.argv[1]](*map(int, sys.argv[2:])))
