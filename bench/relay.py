"""The router's overhead: CPU time, requests/s, latency, chunk delay and memory, as ratios to nginx in the same run.

    python bench/relay.py [--seconds 3] [--rounds 7] [--json bench/results/relay.json]

Each proxy runs alone on core 0; upstream and clients are on core 1. The upstream is nginx (chats) in front of a
simulated Ollama (everything else), so the router decides, verifies and reports as it does in front of a real one.
CPU time per request comes first: other processes of the machine change it least. Requests/s and latency hold only while
the machine is idle, so the share of the two cores that others took is printed too. Needs Debian's nginx-light and wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import uvloop
from relay_parts import CHAT, MODEL, Process, nginx, proxy_conf, python, started, upstream_conf
from rich.console import Console
from rich.table import Table

SIMULATOR, STREAMER, UPSTREAM, PROXY, ROUTER = 18700, 18701, 18702, 18703, 18704
CONNECTIONS = (1, 32, 256)
STREAMS = (16, 64, 200)
IDLE_STREAMS = 1000
HEAD = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
BIRTH = re.compile(rb'"at_ns":(\d+)')
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
HEADS = 512  # more than any cache of heads holds, so that none of them is cached when it comes again
KINDS = (*((count, False) for count in CONNECTIONS), (1, True), (32, True))
LUA = f"wrk.method='POST'; wrk.headers['Content-Type']='application/json'; wrk.body='{CHAT}'"
VARIED = (
    LUA
    + f"""
local pool, next = {{}}, 0
init = function(args)
  for i = 1, {HEADS} do
    wrk.headers['traceparent'] = string.format('00-%032x-%016x-01', i * 7919, i)
    pool[i] = wrk.format(nil, nil, nil, (wrk.body:gsub('blue', 'blue' .. string.rep('!', i % 50))))
  end
end
request = function() next = next % {HEADS} + 1; return pool[next] end
"""
)


class Busy:
    """How busy the machine is with other things than this benchmark."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Return the share of the CPU time since the beginning that neither we nor our children used, 0 to 1.

        Children count once they have ended. Time that a hypervisor gave to another machine (steal) counts as taken.
        """
        total, idle, ours = (now - then for now, then in zip(self._now(), self._before, strict=True))
        return max(0.0, (total - idle - ours) / max(total, 1e-9))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ticks, times = os.sysconf("SC_CLK_TCK"), os.times()
        ours = times.user + times.system + times.children_user + times.children_system
        return sum(fields) / ticks, (fields[3] + fields[4]) / ticks, ours


def wrk(
    port: int, connections: int, seconds: int, proxy: Process | None, *, is_varied: bool = False
) -> dict[str, float]:
    """Run wrk; return requests/s, p50 and p99 in seconds, and the proxy's CPU seconds per request.

    `is_varied`: neither requests nor answers repeat a head, and the bodies have many lengths.
    """
    before = proxy.cpu_s() if proxy else 0.0
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(VARIED if is_varied else LUA)
        script.flush()
        command = f"taskset -c 1 wrk -t1 -c{connections} -d{seconds}s --timeout 20s --latency -s {script.name}"
        url = f"http://127.0.0.1:{port}/api/chat"
        output = subprocess.run([*command.split(), url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"wrk saw failures at {connections} connections:\n{output}")
    times = {
        key: float(value) * UNITS[unit] for key, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s|m)", output)
    }
    count = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])  # type: ignore[index]
    cpu_s = (proxy.cpu_s() - before) / count if proxy else 0.0
    return {"count": count, "per_s": rate, "p50_s": times["50"], "p99_s": times["99"], "cpu_s": cpu_s}


class OneStream(asyncio.Protocol):
    """A client that reads one stream to its end (`idle`: to its first chunk) and records each chunk's delay.

    It searches only for the send time: a client that parses would be slower than the proxies that it measures.
    """

    def __init__(self, order: str, delays: list[float]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order = order
        self._delays = delays
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": self._order}]}).encode()
        cast("asyncio.Transport", transport).write(HEAD % len(body) + body)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        births = BIRTH.findall(data)
        self._delays += [(now - int(born)) / 1e9 for born in births]
        is_done = b'"done":true' in data or (self._order == "idle" and births)
        if is_done and not self.ended.done():
            self.ended.set_result(None)
        self._last = data

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(SystemExit(f"a stream was cut or failed: {self._last[-200:]!r}"))


async def one_stream(port: int, order: str, delays: list[float]) -> asyncio.BaseTransport:
    """Read one stream; the connection stays open."""
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_connection(lambda: OneStream(order, delays), "127.0.0.1", port)
    await stream.ended
    return transport


async def many_streams(port: int, count: int, seconds: int, *, in_step: bool = False) -> dict[str, float]:
    """Return the delays of chunks over `count` streams that start within a second, or all at once (`in_step`)."""
    delays: list[float] = []

    async def begin(number: int) -> asyncio.BaseTransport:
        if not in_step:
            await asyncio.sleep(number / count)
        return await one_stream(port, str(20 * seconds), delays)

    writers = await asyncio.gather(*map(begin, range(count)))
    for writer in writers:
        writer.close()
    delays.sort()
    return {"p50_s": delays[len(delays) // 2], "p99_s": delays[int(len(delays) * 0.99)]}


async def idle_streams(port: int, router: Process) -> dict[str, float]:
    """Return the router's memory with many open streams that send nothing."""
    before = router.rss_mb()
    writers = []
    for _ in range(IDLE_STREAMS // 50):
        writers += await asyncio.gather(*(one_stream(port, "idle", []) for _ in range(50)))
    await asyncio.sleep(1)
    found = {"streams": len(writers), "rss_mb": router.rss_mb(), "rss_before_mb": before}
    for writer in writers:
        writer.close()
    return found


@contextmanager
def stage(streamer: int | None) -> Iterator[tuple[Process, Process]]:
    """Run the proxy and the router, both ready and with a resident model."""
    with ExitStack() as stack:
        stack.enter_context(started(python("simulate", SIMULATOR), SIMULATOR, 1))
        if streamer is not None:
            stack.enter_context(started(python("stream", streamer), streamer, 1))
        stack.enter_context(nginx(upstream_conf(UPSTREAM, SIMULATOR, streamer), UPSTREAM, 1))
        proxy = stack.enter_context(nginx(proxy_conf(PROXY, UPSTREAM), PROXY, 0))
        router = stack.enter_context(started(python("route", ROUTER, UPSTREAM), ROUTER, 0))
        content = "2" if streamer is not None else "x"
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{ROUTER}/api/chat", body, timeout=120) as answer:
            print(f"resident: {answer.headers['X-Router-Model']} ({answer.headers['X-Router-Reason']})")
        yield proxy, router


def requests(seconds: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with stage(None) as (proxy, router):
        for count, is_varied in KINDS:
            runs: dict[str, list[dict[str, float]]] = {"direct": [], "nginx": [], "router": []}
            for _ in range(rounds):
                runs["direct"].append(wrk(UPSTREAM, count, max(1, seconds // 2), None, is_varied=is_varied))
                runs["nginx"].append(wrk(PROXY, count, seconds, proxy, is_varied=is_varied))
                runs["router"].append(wrk(ROUTER, count, seconds, router, is_varied=is_varied))
            row: dict[str, Any] = {"connections": count, "is_varied": is_varied}
            for name, found in runs.items():
                row[name] = {key: statistics.median(run[key] for run in found) for key in found[0]}
            row["rss_mb"] = router.rss_mb()
            row["ratio"] = {key: row["router"][key] / max(row["nginx"][key], 1e-9) for key in row["nginx"]}
            rows.append(row)
    return rows


def streams(seconds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    rows = []
    with stage(STREAMER) as (_, router):
        for count, in_step in (*((count, False) for count in STREAMS), (STREAMS[-1], True)):
            row: dict[str, Any] = {"streams": count, "in_step": in_step}
            for name, port in (("nginx", PROXY), ("router", ROUTER)):
                before = router.cpu_s()
                row[name] = uvloop.run(many_streams(port, count, seconds, in_step=in_step))
                if name == "router":
                    row["router_cores"] = (router.cpu_s() - before) / seconds
            rows.append(row)
        return rows, uvloop.run(idle_streams(ROUTER, router))


def show(result: dict[str, Any]) -> None:
    table = Table("connections", "", "CPU µs/request", "requests/s", "p50 ms", "p99 ms", "added p50 ms")
    for row in result["requests"]:
        title = f"{row['connections']}{', no repeated heads' if row['is_varied'] else ''}"
        for name in ("direct", "nginx", "router"):
            run = row[name]
            added = (run["p50_s"] - row["direct"]["p50_s"]) * 1e3
            cells = [f"{run['per_s']:,.0f}", f"{run['p50_s'] * 1e3:.2f}", f"{run['p99_s'] * 1e3:.2f}"]
            table.add_row(title, name, f"{run['cpu_s'] * 1e6:.1f}", *cells, f"{added:.2f}")
        ratio = row["ratio"]
        cells = [f"{ratio['per_s']:.2f} ×", f"{ratio['p50_s']:.2f} ×", f"{ratio['p99_s']:.2f} ×"]
        table.add_row("", "router ÷ nginx", f"{ratio['cpu_s']:.2f} ×", *cells, "", end_section=True)
    console = Console(width=110)
    console.print(table)
    table = Table(
        "streams × 20 chunks/s", "nginx p50 ms", "nginx p99 ms", "router p50 ms", "router p99 ms", "router cores"
    )
    for row in result["streams"]:
        delays = [f"{row[name][key] * 1e3:.2f}" for name in ("nginx", "router") for key in ("p50_s", "p99_s")]
        name = f"{row['streams']}, all in step" if row["in_step"] else str(row["streams"])
        table.add_row(name, *delays, f"{row['router_cores']:.2f}")
    console.print(table)
    idle = result["idle"]
    console.print(
        f"{idle['streams']:.0f} idle streams: RSS {idle['rss_mb']:.0f} MB ({idle['rss_before_mb']:.0f} before)"
    )
    one, many = result["requests"][0]["ratio"], result["requests"][1]["ratio"]
    steady, in_step = (row["router"]["p99_s"] * 1e3 for row in result["streams"][-2:])
    console.print(f"other processes took {result['busy']:.0%} of the machine; load {result['load']:.1f} before")
    console.print(
        f"bounds: p50 at 1 connection {one['p50_s']:.2f} (≤ 1.5), requests/s at 32 {many['per_s']:.2f} (≥ 0.20), "
        f"p99 chunk delay at 200 streams {steady:.1f} ms (≤ 5; {in_step:.1f} with all in step), "
        f"RSS {idle['rss_mb']:.0f} MB (≤ 90)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "relay.json")
    options = parser.parse_args()
    for tool in ("nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install nginx-light wrk util-linux")
    busy = Busy()
    result: dict[str, Any] = {"load": os.getloadavg()[0], "requests": requests(options.seconds, options.rounds)}
    result["streams"], result["idle"] = streams(options.seconds)
    result["busy"] = busy.share()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1))
    show(result)


if __name__ == "__main__":
    main()
