"""Random stories of two fronts and two nodes: clients, other programs, bad cables, drains, round by round."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

from router.core.units import MIB
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, SPEEDS, connect
from tests.routing.front.whole import Fleet, play

LADDER = (BIG, OTHER, MIDDLE, SMALL)
CHAINS = {"defaults.auto_chains": "off", "chains": {model: list(LADDER[at:]) for at, model in enumerate(LADDER)}}
CARDS_MIB = ((24564, 24564), (24564, 12288), (12288, 12288), (24564, 16384))
LEFT_MIB = 6000
"""Free for the router at least, so that the smallest model can always be served."""

ROUND_S, ANSWER_S = 6.0, 300.0


@dataclass
class Told:
    """What came of the requests of a story."""

    asked: int = 0
    left: int = 0
    broken: int = 0
    smaller: int = 0
    loads: int = 0
    undone: int = 0
    spilled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, other: Told) -> None:
        for name in ("asked", "left", "broken", "smaller", "loads", "undone"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.spilled += other.spilled
        self.lost += other.lost


class Round:
    """One round. What it does follows from its dice alone. `cut` is the node whose connections were reset."""

    def __init__(self, one: Fleet, dice: random.Random, told: Told, name: str) -> None:
        self._one, self._dice, self._told, self._name = one, dice, told, name
        self._cut = ""

    async def play(self) -> None:
        dice = self._dice
        jobs = [self._client(dice.uniform(0, ROUND_S)) for _ in range(dice.randint(1, 8))]
        trouble = dice.choice((self._nothing, self._foreign, self._cable, self._drain, self._unload))
        await asyncio.gather(trouble(), *jobs)

    # --- what happens ------------------------------------------------------------------------------------------

    async def _nothing(self) -> None:
        await asyncio.sleep(0)

    async def _foreign(self) -> None:
        """Other programs take memory of a card, and release it."""
        cards = self._one.nodes[self._dice.choice("ab")].sim.cards
        most_mib = cards.machine.cards[0].total_mib - LEFT_MIB
        await asyncio.sleep(self._dice.uniform(0, ROUND_S))
        cards.set_foreign(0, min(int(self._dice.uniform(0, most_mib)) * MIB, max(0, cards.free_bytes(0))))
        await asyncio.sleep(self._dice.uniform(0, ROUND_S))
        cards.set_foreign(0, 0)

    async def _cable(self) -> None:
        name, fault = self._dice.choice("ab"), self._dice.choice(("refuse", "hang"))
        await asyncio.sleep(self._dice.uniform(0, ROUND_S))
        self._cut = name if fault == "refuse" else ""
        self._one.proxies[name].break_(fault)
        await asyncio.sleep(self._dice.uniform(0.1, ROUND_S))
        self._one.proxies[name].heal()

    async def _drain(self) -> None:
        state = self._one.nodes[self._dice.choice("ab")].router.router.node.state
        await asyncio.sleep(self._dice.uniform(0, ROUND_S))
        state.drain(is_draining=True)
        await asyncio.sleep(self._dice.uniform(0.1, ROUND_S))
        state.drain(is_draining=False)

    async def _unload(self) -> None:
        await asyncio.sleep(self._dice.uniform(0, ROUND_S))
        for model in LADDER:
            await self._one.ask({"model": model, "keep_alive": 0}, front=self._dice.randrange(2))

    # --- clients -----------------------------------------------------------------------------------------------

    async def _client(self, after_s: float) -> None:
        dice = self._dice
        model, stays = dice.choice(LADDER), dice.random() < 0.85
        body: dict[str, Any] = {"model": model, "prompt": f"[[tokens={dice.choice((1, 20, 200))}]] hi"}
        body["stream"] = dice.random() < 0.5
        if dice.random() < 0.3:
            body["options"] = {"num_ctx": dice.choice((4096, 8192))}
        front, leaves_s = dice.randrange(2), dice.uniform(0, 8)
        await asyncio.sleep(after_s)
        self._told.asked += 1
        raw = await connect(self._one.fronts[front].url)
        try:
            async with asyncio.timeout(ANSWER_S if stays else leaves_s):
                reply = await raw.ask("POST", "/api/generate", json.dumps(body))
        except TimeoutError:
            if stays:
                self._told.lost.append(f"{self._name}: {model} was not answered in {ANSWER_S:.0f} s")
            self._told.left += 1
            return
        finally:
            raw.close()
        self._judge(model, reply.status, reply.headers.get("x-router-backend", ""), reply.body)

    def _judge(self, model: str, status: int, node: str, body: bytes) -> None:
        told, last = self._told, _last_of(body)
        if status == 200 and last.get("done"):
            told.smaller += last["model"] != model
            per_s = last["eval_count"] / last["eval_duration"] * 1e9
            if per_s < 0.5 * SPEEDS.tokens_per_s:  # a tenth of a model on the CPU is 29 %
                told.spilled.append(f"{self._name}: {last['model']} on {node} with {per_s:.0f} tokens/s")
        elif status == 200 and node and node == self._cut:
            told.broken += 1  # bytes had been sent, and its node was cut off
        else:
            told.lost.append(f"{self._name}: {model} by {node or 'no node'}: {status} {body[-200:]!r}")


def _last_of(body: bytes) -> dict[str, Any]:
    try:
        return json.loads(body.rstrip().rpartition(b"\n")[2])
    except ValueError:
        return {}


def rounds(seed: int, count: int, tmp_path: Any) -> Told:
    """Play rounds on two nodes with cards by the seed, and return what came of them."""
    dice, told = random.Random(seed), Told()
    cards = dict(zip("ab", ((size,) for size in dice.choice(CARDS_MIB)), strict=True))

    async def story(one: Fleet) -> Told:
        for number in range(count):
            await Round(one, dice, told, f"seed {seed}, round {number}").play()
            await asyncio.sleep(dice.choice((0.0, 1.0, 4.0)))
        told.loads = len(one.loads)
        told.undone = len(one.spilled)
        return told

    return play(story, cards, tmp_path, fronts=2, config=CHAINS, models=LADDER)
