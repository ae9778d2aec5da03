"""What a client of two fronts sees while a node, then a front, is cut off: prints it as one line of JSON at the end.

usage, on the machine `client`: python -m tests.e2e.fleet_cable PREFIX.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import httpx

from tests.e2e.cable import DEADLINE_S, Seen, ask
from tests.e2e.network import Network
from tests.e2e.waiting import until

FRONTS = {"front-a": "10.0.0.11", "front-b": "10.0.0.12"}
NODES = {"node-a": "10.0.0.21", "node-b": "10.0.0.22"}
PORT = 11435
MODELS = ("qwen3:14b", "gpt-oss:20b")
"""Each fills the better part of a node's card, so each node has one of them."""

TOKENS, LINK_S = 150, 5.0


@dataclass
class Facts:
    """What was seen, by phase."""

    cold: list[Seen] = field(default_factory=list)
    spread: list[Seen] = field(default_factory=list)
    streams: dict[str, list[Seen]] = field(default_factory=dict)
    meanwhile: list[Seen] = field(default_factory=list)
    later: list[Seen] = field(default_factory=list)
    used_again_s: float = 0.0
    is_parted: bool = False
    at_parted: list[Seen] = field(default_factory=list)
    at_other: list[Seen] = field(default_factory=list)
    parted_again_s: float = 0.0


class Client:
    """Asks fronts by name."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def ask(self, front: str, model: str, tokens: int = 2, begun: Callable[[], None] = lambda: None) -> Seen:
        """Send one request to a front."""
        return await ask(self._http, model, tokens, begun, f"http://{FRONTS[front]}:{PORT}")

    async def all(self, model: str, times: int = 1) -> list[Seen]:
        """Send requests to all fronts at once."""
        return await asyncio.gather(*(self.ask(front, model) for front in list(FRONTS) * times))

    async def streams(self) -> list[asyncio.Task[Seen]]:
        """Start a stream of each model by each front; return when all have begun."""
        begun = {(front, model): asyncio.Event() for front in FRONTS for model in MODELS}
        found = [asyncio.create_task(self.ask(*which, TOKENS, event.set)) for which, event in begun.items()]
        await asyncio.gather(*(event.wait() for event in begun.values()))
        return found

    async def until_served(self, front: str, model: str, is_so: Callable[[Seen], bool]) -> float:
        """Send requests until one is answered so; return how long that took."""

        async def is_served() -> bool:
            return is_so(await self.ask(front, model))

        return await until(is_served, DEADLINE_S)


async def observe(net: Network) -> Facts:
    """Load, spread, cut off a node, then part a front from the nodes."""
    facts = Facts()
    async with httpx.AsyncClient(timeout=DEADLINE_S) as http:
        client = Client(http)
        for front in FRONTS:
            await client.until_served(front, MODELS[0], lambda seen: seen.status == 200)
        facts.cold = await client.all(MODELS[1], 3)
        facts.spread = [one for model in MODELS for one in await client.all(model)]

        at = {one.model: one.backend for one in facts.spread}
        running = await client.streams()
        net.cut(at[MODELS[1]])
        asked = []
        for _ in range(10):
            asked += [asyncio.create_task(client.ask(front, MODELS[1])) for front in FRONTS]
            await asyncio.sleep(1)
        facts.streams["node cut off"] = await asyncio.gather(*running)
        facts.meanwhile = await asyncio.gather(*asked)
        facts.later = await client.all(MODELS[1])
        net.mend(at[MODELS[1]])

        facts.used_again_s = await back(client, at[MODELS[1]])

        facts.is_parted = net.part("front-b", *NODES.values())
        if facts.is_parted:
            await client.until_served("front-b", MODELS[0], lambda seen: seen.status != 200)
            facts.at_parted = [await client.ask("front-b", MODELS[0]) for _ in range(3)]
            facts.at_other = [await client.ask("front-a", MODELS[0]) for _ in range(3)]
            net.even("front-b")
            facts.parted_again_s = await client.until_served("front-b", MODELS[0], lambda seen: seen.status == 200)
    return facts


async def back(client: Client, node: str) -> float:
    """Ask for models until a node serves one again; return how long that took."""
    started_s = time.monotonic()
    while True:
        found = [one for model in MODELS for one in await client.all(model)]
        if node in {one.backend for one in found}:
            return time.monotonic() - started_s
        assert time.monotonic() < started_s + DEADLINE_S
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(observe(Network(sys.argv[1]))))))
