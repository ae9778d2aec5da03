"""A baseline's rule on the simulated Ollama: what a small scheduler of one's own in front of it would do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from router.core.ollama.options import DEFAULT_BATCH
from router.planning.baselines import Held, Rule, Start, Switch, Ticket, Yard
from router.planning.measure import body_of, path_of
from router.planning.stage import Reply, Stage
from router.planning.traffic import EMBEDDERS

LOOK_S = 0.05
"""Interval at which Ollama's list is read while a model is unloaded."""


class Direct:
    """Sends requests to the simulated Ollama in the order of a rule, and loads and unloads for it."""

    def __init__(self, one: Stage, rule: Rule) -> None:
        self._one = one
        self._began_s = asyncio.get_running_loop().time()
        self._yard = Yard(one.sim.cards.machine.cards, rule)
        self._turns: dict[int, asyncio.Future[Held]] = {}
        self._switch: asyncio.Task[None] | None = None

    async def send(self, ticket: Ticket) -> Reply:
        """Wait for the ticket's turn and return its answer; its wait counts from now."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        turn = self._turns[ticket.number] = loop.create_future()
        self._yard.arrive(ticket)
        self._pump()
        timer = loop.call_later(self._yard.rule.age_bound_s + 0.001, self._pump)
        held = await turn
        timer.cancel()
        body = {**body_of(replace(ticket.job, model=ticket.tag)), **_load_options(held, self._cards)}
        reply = await self._one.ask(body, path_of(ticket.job))
        self._yard.ended(ticket.tag, self._now_s())
        self._pump()
        return replace(reply, asked=ticket.job.model, asked_s=asked_s, took_s=loop.time() - asked_s)

    @property
    def _cards(self) -> int:
        return len(self._yard.cards)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._began_s

    def _pump(self) -> None:
        for action in self._yard.pump(self._now_s()):
            if isinstance(action, Start):
                self._turns.pop(action.ticket.number).set_result(action.held)
            else:
                self._switch = asyncio.get_running_loop().create_task(self._change(action))

    async def _change(self, switch: Switch) -> None:
        for tag in switch.evict:
            await self._one.ask({"model": tag, "keep_alive": 0, **_nothing(tag)}, _path(tag))
            while any(row.model.name == tag for row in self._one.sim.engine.ps()):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(LOOK_S)
        held = Held(switch.tag, switch.num_ctx, switch.place)
        options = _load_options(held, self._cards)
        await self._one.ask({"model": switch.tag, **_nothing(switch.tag), **options}, _path(switch.tag))
        self._yard.switched(self._now_s())
        self._pump()


def _path(tag: str) -> str:
    return "/api/embed" if tag in EMBEDDERS else "/api/generate"


def _nothing(tag: str) -> dict[str, Any]:
    """Return the input of a request that only loads."""
    return {"input": []} if tag in EMBEDDERS else {}


def _load_options(held: Held, cards: int) -> dict[str, Any]:
    """Return the options with which `held` is loaded; every request must name them, else Ollama reloads it."""
    options: dict[str, Any] = {"num_ctx": held.num_ctx}
    if held.tag not in EMBEDDERS:
        options["num_batch"] = DEFAULT_BATCH
    if cards > 1 and len(held.place.cards) == 1:
        options["main_gpu"] = held.place.cards[0]
    return {"options": options, "keep_alive": -1}
