"""What traces cost: CPU time per request without them, with a sample of them, and with all, in pairs.

    chrt -f 1 python bench/traces.py [--seconds 1] [--rounds 9] [--percent 10] [--json bench/results/traces.json]

Three routers run on core 0 and get short bursts in turn, there and back, so that each is compared with its neighbours
in time; nginx as upstream, the collector and the clients are on core 1. The CPU time is that of the whole process from
a burst's begin until its last span is sent. On a busy machine run it with real-time priority, as above. Needs Debian's
nginx-light and wrk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from relay import Busy, wrk
from relay_parts import CHAT, Process, nginx, python, started, upstream_conf

PORTS = dict(zip(("simulator", "upstream", "collector", "off", "sampled", "all"), range(18760, 18766), strict=True))
CONNECTIONS = (1, 32)
SENT_S = 1.2
"""What is noted in a burst is sent within a second after it: `telemetry.otlp.every_s`."""


@contextmanager
def routers(percent: int) -> Iterator[dict[str, Process]]:
    """Run the routers, each with a resident model."""
    with ExitStack() as stack:
        stack.enter_context(started(python("simulate", PORTS["simulator"]), PORTS["simulator"], 1))
        stack.enter_context(started(python("collect", PORTS["collector"]), PORTS["collector"], 1))
        conf = upstream_conf(PORTS["upstream"], PORTS["simulator"], None, echo=False)
        stack.enter_context(nginx(conf, PORTS["upstream"], 1))
        found = {}
        for name, part in (("off", 0), ("sampled", percent), ("all", 100)):
            command = python("route", PORTS[name], PORTS["upstream"], 0, PORTS["collector"] if part else 0, part)
            found[name] = stack.enter_context(started(command, PORTS[name], 0))
            url = f"http://127.0.0.1:{PORTS[name]}/api/chat"
            with urllib.request.urlopen(url, CHAT.encode(), timeout=120) as answer:
                answer.read()
            wrk(PORTS[name], max(CONNECTIONS), 1, None)  # caches are filled, and memory is taken
        yield found


def burst(router: Process, port: int, connections: int, seconds: int) -> tuple[float, float]:
    """Return how many requests a burst had, and the CPU seconds that each took, with what is done for it afterwards.

    What the router takes when nobody asks anything is left out.
    """
    idle_s, began = cpu_while(router, lambda: time.sleep(SENT_S)) / SENT_S, time.monotonic()
    count = 0.0

    def ask() -> None:
        nonlocal count
        count = wrk(port, connections, seconds, None)["count"]
        time.sleep(SENT_S)

    used_s = cpu_while(router, ask) - idle_s * (time.monotonic() - began)
    return count, used_s / max(count, 1)


def cpu_while(router: Process, do: Callable[[], object]) -> float:
    before = router.cpu_s()
    do()
    return router.cpu_s() - before


def rounds(seconds: int, count: int, percent: int) -> list[dict[str, Any]]:
    """Return, for each number of connections, the CPU seconds per request of each router in each round.

    A round in which the machine had no time for one of them is left out: what a request takes depends on the load.
    """
    names = ("off", "sampled", "all")
    with routers(percent) as running:
        found: dict[int, list[dict[str, tuple[float, float]]]] = {each: [] for each in CONNECTIONS}
        for number in range(count):
            for connections, before in found.items():
                order = names if number % 2 == 0 else names[::-1]
                before.append({name: burst(running[name], PORTS[name], connections, seconds) for name in order})
    rows = []
    for connections, all_rounds in found.items():
        usual = statistics.median(requests for each in all_rounds for requests, _ in each.values())
        kept = [each for each in all_rounds if min(requests for requests, _ in each.values()) > usual / 2]
        rows.append(
            {"connections": connections, "kept": len(kept), **{n: [each[n][1] for each in kept] for n in names}}
        )
    return rows


def more(row: dict[str, Any], name: str) -> list[float]:
    """Return what a request costs more than without traces, in each round, as a share."""
    return [with_ / without - 1 for with_, without in zip(row[name], row["off"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--percent", type=int, default=10)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "traces.json")
    options = parser.parse_args()
    busy = Busy()
    result: dict[str, Any] = {"percent": options.percent, "load": os.getloadavg()[0]}
    result["rows"] = rounds(options.seconds, options.rounds, options.percent)
    result["busy"] = busy.share()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1))
    for row in result["rows"]:
        off = statistics.median(row["off"]) * 1e6
        print(f"{row['connections']} connections: {off:.1f} µs of CPU a request without traces")
        for name, title in (("sampled", f"{options.percent} %"), ("all", "all")):
            low, part, high = statistics.quantiles(more(row, name), n=4)
            us = statistics.median(row[name]) * 1e6
            spread = f"median of {row['kept']} pairs; half of them {low:+.1%} to {high:+.1%}"
            print(f"  {title:>5} traced: {us:.1f} µs, {part:+.1%} ({spread})")
    print(f"other processes took {result['busy']:.0%} of the machine; load {result['load']:.1f} before")


if __name__ == "__main__":
    main()
