"""What open dashboards cost: CPU of the router, and how much longer requests take, with none and with twenty of them.

    python bench/dashboards.py [--seconds 10] [--viewers 20] [--rate 20]

The router runs in a process of its own in front of a simulated Ollama, with twenty teams and a page of decisions that
changes with every request. Viewers read `/router/events`; half of them read nothing after the first events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

ROUTER, ADMIN, SIMULATOR = 18710, 18711, 18712
MODELS = ("llama3.1:8b", "llama3.2:3b", "qwen3:14b")
TEAMS = 20


def key_of(team: int) -> str:
    """Return the key of a team."""
    return f"bench-key-{team}"


def teams_in(folder: Path) -> str:
    """Write the files of the teams; return their pattern."""
    for team in range(TEAMS):
        digest = sha256(key_of(team).encode()).hexdigest()
        limits = "{ concurrent: 64, requests_per_minute: 60000, tokens_per_day: 900M, waiting: 64 }"
        text = f"team: team-{team}\nkeys: [{{ id: k, sha256: {digest} }}]\nlimits: {limits}\n"
        (folder / f"team-{team}.yaml").write_text(text)
    return f"{folder}/*.yaml"


async def started(*argv: str, port: int, env: dict[str, str]) -> asyncio.subprocess.Process:
    """Start a command of the router, and wait until its port answers."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router", *argv, env={**os.environ, **env}, stdout=quiet, stderr=quiet
    )
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return process
    raise SystemExit(f"{argv[0]} does not listen on {port}")


async def view(reads: bool) -> None:
    """Hold a dashboard's stream open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ADMIN)
    try:
        writer.write(b"GET /router/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.read(1 << 16)
        while reads and await reader.read(1 << 20):
            pass
        await asyncio.sleep(3600)
    finally:
        writer.close()


async def ask(number: int) -> float:
    """Send a request of one of the teams; return how long its whole answer took."""
    body = json.dumps({"model": MODELS[1], "prompt": "[[tokens=1]] hi", "stream": False}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key_of(number % TEAMS)}\r\n"
    head += f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    began_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", ROUTER)
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    return time.perf_counter() - began_s


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measured(pid: int, seconds: float, rate: float) -> tuple[float, list[float]]:
    """Return the router's CPU share and the times of the requests over a while at a steady rate."""
    began_s, used_s, asked = time.perf_counter(), cpu_s(pid), []
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(ask(number)))
    times = await asyncio.gather(*asked)
    return (cpu_s(pid) - used_s) / (time.perf_counter() - began_s), sorted(times)


def line(name: str, share: float, times: list[float]) -> str:
    p99 = times[int(len(times) * 0.99)] if times else 0.0
    half = statistics.median(times) if times else 0.0
    return f"{name:24} {100 * share:6.2f} % of a core   request p50 {1000 * half:6.2f} ms   p99 {1000 * p99:6.2f} ms"


async def main(options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {"OLLAMA_ROUTER_TEAMS": teams_in(Path(folder)), "OLLAMA_ROUTER_STORE__PATH": ":memory:"}
        env["OLLAMA_ROUTER_TELEMETRY__LOG_LEVEL"] = "warning"
        machine = (
            "--gpu",
            "24GiB",
            "--models",
            ",".join(MODELS),
            "--load-mib-per-s",
            "50000",
            "--tokens-per-s",
            "2000",
        )
        simulator = await started("simulate", *machine, "--listen", f"127.0.0.1:{SIMULATOR}", port=SIMULATOR, env={})
        where = ("--listen", f"127.0.0.1:{ROUTER}", "--admin", f"127.0.0.1:{ADMIN}")
        url = f"http://127.0.0.1:{SIMULATOR}"
        router = await started("serve", *where, "--upstream", url, port=ROUTER, env=env)
        viewers: list[asyncio.Task[None]] = []
        try:
            for number in range(100):
                await ask(number)
            for count in (0, options.viewers, 0, options.viewers):
                viewers = [asyncio.create_task(view(bool(number % 2))) for number in range(count)]
                await asyncio.sleep(1.5)
                for rate in (0.0, options.rate):
                    share, times = await measured(router.pid, options.seconds, rate) if rate else await idle(router.pid)
                    print(line(f"{count} viewers, {rate:g}/s", share, times), flush=True)
                for viewer in viewers:
                    viewer.cancel()
                await asyncio.gather(*viewers, return_exceptions=True)
        finally:
            for process in (router, simulator):
                process.terminate()
                await process.wait()


async def idle(pid: int, seconds: float = 5.0) -> tuple[float, list[float]]:
    """Return the router's CPU share while nobody asks."""
    used_s = cpu_s(pid)
    await asyncio.sleep(seconds)
    return (cpu_s(pid) - used_s) / seconds, []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--rate", type=float, default=20.0)
    asyncio.run(main(parser.parse_args()))
