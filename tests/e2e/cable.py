"""What somebody at the desk sees while the cable of the tower is pulled out: prints it as one line of JSON at the end.

usage, on the machine `desk`: python -m tests.e2e.cable FOLDER PREFIX. First the commands of docs/fleet.md run as they
stand.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from tests.e2e.blocks import ROOT, Shell, blocks, environment
from tests.e2e.network import Network
from tests.e2e.waiting import until

URL, ADMIN = "http://127.0.0.1:11435", "http://127.0.0.1:11436"
TOWER, DESK = "chat", "qwen3:8b"
"""What only the tower's card can hold, and what the desk's holds as well, which is the smaller one."""

TOKENS = 100
LINK_S = 8.0
MOMENT_S = 1.5
"""Far less than `LINK_S`, which the connections may be silent: the machine that runs this may be slow."""

DEADLINE_S = 120.0


@dataclass
class Seen:
    """One request: where its answer came from, after how many attempts, its parts, the longest pause between two."""

    status: int = 0
    backend: str = ""
    model: str = ""
    parts: int = 0
    errors: int = 0
    is_whole: bool = False
    attempts: int = 1
    pause_s: float = 0.0


@dataclass
class Facts:
    """What was seen, by phase."""

    streams: dict[str, list[Seen]] = field(default_factory=dict)
    meanwhile: list[Seen] = field(default_factory=list)
    later: list[Seen] = field(default_factory=list)
    back_s: float = 0.0
    used_again_s: float = 0.0
    is_lossy: bool = False
    is_slow: bool = False


async def ask(
    http: httpx.AsyncClient, model: str, tokens: int, begun: Callable[[], None] = lambda: None, url: str = URL
) -> Seen:
    """Send one request, and read its answer to the end."""
    seen, last_s = Seen(), time.monotonic()
    body = {"model": model, "prompt": f"[[tokens={tokens}]] hello", "options": {"num_ctx": 2048}}
    async with http.stream("POST", f"{url}/api/generate", json=body) as answer:
        seen.status, headers = answer.status_code, answer.headers
        seen.backend, seen.model = headers.get("x-router-backend", ""), headers.get("x-router-model", "")
        seen.attempts = int(headers.get("x-router-attempts", "1"))
        async for line in answer.aiter_lines():
            found, now_s = json.loads(line), time.monotonic()
            seen.pause_s, last_s = max(seen.pause_s, now_s - last_s), now_s
            seen.parts += 1
            seen.errors += "error" in found
            seen.is_whole = found.get("done") is True
            begun()
    return seen


async def streams(http: httpx.AsyncClient) -> list[asyncio.Task[Seen]]:
    """Start a stream from each machine; return when both have begun."""
    begun = {model: asyncio.Event() for model in (TOWER, DESK)}
    found = [asyncio.create_task(ask(http, model, TOKENS, event.set)) for model, event in begun.items()]
    await asyncio.gather(*(event.wait() for event in begun.values()))
    return found


async def is_ready(http: httpx.AsyncClient, name: str) -> bool:
    """Return whether a backend can be used."""
    return bool((await http.get(f"{ADMIN}/readyz")).json()["backends"][name]["ready"])


async def observe(net: Network) -> Facts:
    """Pull the cable out for a moment, then for long; at last lose and delay packets."""
    facts = Facts()
    async with httpx.AsyncClient(timeout=DEADLINE_S) as http:
        for model in (TOWER, DESK):
            await ask(http, model, 2)

        running = await streams(http)
        net.cut("tower")
        await asyncio.sleep(MOMENT_S)
        net.mend("tower")
        facts.streams["cut for a moment"] = await asyncio.gather(*running)
        await until(lambda: is_ready(http, "tower"))

        running = await streams(http)
        net.cut("tower")
        asked = []
        while await is_ready(http, "tower"):
            asked.append(asyncio.create_task(ask(http, TOWER, 2)))
            await asyncio.sleep(1)
        facts.streams["cut for long"] = await asyncio.gather(*running)
        facts.meanwhile = await asyncio.gather(*asked)
        facts.later = [await ask(http, TOWER, 2) for _ in range(5)]
        net.mend("tower")
        facts.back_s = await until(lambda: is_ready(http, "tower"))

        async def is_used() -> bool:
            return (await ask(http, TOWER, 2)).backend == "tower"

        facts.used_again_s = await until(is_used)

        facts.is_lossy, facts.is_slow = net.lose("tower", 0.05), net.delay("tower", 30)
        facts.streams["lossy"] = await asyncio.gather(*await streams(http))
        net.even("tower")
    return facts


def main(folder: Path, prefix: str) -> None:
    """Run the page's commands, then the trial."""
    env = {
        **environment(folder),
        **{key: value for key, value in os.environ.items() if key.startswith("OLLAMA_ROUTER")},
    }
    del env["OLLAMA_ROUTER_BACKENDS__LOCAL__PROBE__KIND"], env["OLLAMA_ROUTER_BACKENDS__LOCAL__PROBE__URL"]
    shell = Shell(folder, env)
    (commands,) = [text for _, why, text in blocks(ROOT / "docs/fleet.md") if "test_two_machines" in why]
    try:
        shell.run("five-minutes", commands)
        facts = asyncio.run(observe(Network(prefix)))
    finally:
        shell.close()
    print(json.dumps(asdict(facts)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
