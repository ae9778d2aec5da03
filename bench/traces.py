"""What traces cost: CPU time per request without them, with a sample of them, and with all, in pairs.

    python bench/traces.py [--seconds 3] [--rounds 7] [--percent 10] [--json bench/results/traces.json]

The CPU time is that of the whole process, so the thread that makes and sends spans is in it. Routers run on core 0, one
at a time; nginx as upstream, the collector and the clients on core 1. Needs Debian's nginx-light and wrk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from relay import Busy, wrk
from relay_parts import CHAT, nginx, python, started, upstream_conf

PORTS = dict(zip(("simulator", "upstream", "collector", "off", "sampled", "all"), range(18760, 18766), strict=True))
CONNECTIONS = (1, 32)


def rounds(seconds: int, count: int, percent: int) -> list[dict[str, Any]]:
    """Return, for each number of connections, the CPU seconds per request of each router in each round."""
    with ExitStack() as stack:
        stack.enter_context(started(python("simulate", PORTS["simulator"]), PORTS["simulator"], 1))
        stack.enter_context(started(python("collect", PORTS["collector"]), PORTS["collector"], 1))
        conf = upstream_conf(PORTS["upstream"], PORTS["simulator"], None, echo=False)
        stack.enter_context(nginx(conf, PORTS["upstream"], 1))
        routers = {}
        for name, collector, part in (
            ("off", 0, 0),
            ("sampled", PORTS["collector"], percent),
            ("all", PORTS["collector"], 100),
        ):
            command = python("route", PORTS[name], PORTS["upstream"], 0, collector, part)
            routers[name] = stack.enter_context(started(command, PORTS[name], 0))
            with urllib.request.urlopen(
                f"http://127.0.0.1:{PORTS[name]}/api/chat", CHAT.encode(), timeout=120
            ) as answer:
                answer.read()
        rows = []
        for connections in CONNECTIONS:
            row: dict[str, Any] = {"connections": connections, **{name: [] for name in routers}}
            for _ in range(count):
                for name, router in routers.items():
                    row[name].append(wrk(PORTS[name], connections, seconds, router)["cpu_s"])
            rows.append(row)
        return rows


def more(row: dict[str, Any], name: str) -> list[float]:
    """Return what a request costs more than without traces, in each round, as a share."""
    return [with_ / without - 1 for with_, without in zip(row[name], row["off"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
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
            part, us = statistics.median(more(row, name)), statistics.median(row[name]) * 1e6
            print(f"  {title:>5} traced: {us:.1f} µs, {part:+.1%} (median of {options.rounds} pairs)")
    print(f"other processes took {result['busy']:.0%} of the machine; load {result['load']:.1f} before")


if __name__ == "__main__":
    main()
