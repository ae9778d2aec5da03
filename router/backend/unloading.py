"""Making room: residents are unloaded one by one, and then there is a pause before the load, if that costs less than
the stall of Ollama which it prevents.

A resident has gone when `/api/ps` no longer lists it and the probe shows its memory as free.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from router.backend.guesses import dead
from router.backend.load_times import LoadTimes
from router.backend.switches import Target
from router.backend.tracked import Tracked
from router.backend.verification import BACK_SHARE
from router.backend.world import World
from router.config import Config
from router.core.decision.unload_order import Unloads, unloads
from router.core.ollama.runner import Gpu
from router.errors import ModelNotFound, UpstreamError

REPEAT_UNLOAD_S = 2.0
"""Interval at which an unload is repeated until the model has gone: Ollama ignores it while the runner is busy."""


class Unloading:
    """Unloads residents of one backend."""

    def __init__(self, world: World, load_times: LoadTimes, config: Config) -> None:
        self._world = world
        self._load_times = load_times
        self._residents = world.residents
        self._cards = world.cards
        self._settings = config.switch
        self._now = asyncio.get_running_loop().time

    async def make_room(self, target: Target) -> bool:
        """Unload the residents that the plan evicts, one by one, and read again; return True if all have gone."""
        await self._world.refresh_surely()
        found, has_unloaded, wanted = self._ordered(target), False, target.weights
        pause_s = self._settings.settle_s
        until_s = self._load_times.costs.until_unload_s(wanted, target.facts.size_bytes)
        if found.hides_s(until_s) <= pause_s:
            pause_s = 0.0
        for tracked in [self._residents[one.weights] for one in found.order]:
            if self._residents.get(tracked.weights) is not tracked or not self._world.wanted.get(wanted):
                continue
            if tracked.in_flight or not await self.unload(tracked):  # a request is never cut off for a switch
                return False
            has_unloaded = True
        if has_unloaded:
            await asyncio.sleep(pause_s)
            await self._world.refresh_fresh()
        while self._cards.is_memory_returning():  # of a model that left ps without our unloading it
            await self.pause()
        return True

    def _ordered(self, target: Target) -> Unloads:
        """Return the residents that a plan evicts in the order in which to unload them."""
        residents = {weights: one.frozen(0, self._now()) for weights, one in self._residents.items()}
        going = [residents[weights] for weights in target.plan.evict if weights in residents]
        return unloads(going, tuple(residents.values()), self._cards.gpus or (), target.plan.expected_bytes)

    async def unload(self, tracked: Tracked) -> bool:
        """Unload a resident and wait for its memory; return False if it is still listed after `unload_timeout_s`.

        It has gone when ps no longer lists it and the probe shows its memory as free.
        """
        is_dead = tracked in dead(self._cards.gpus or (), self._residents.values())
        before = None if is_dead else self._cards.gpus  # a dead one has given its memory back
        started_s = self._now()
        deadline_s = started_s + self._settings.unload_timeout_s
        newest = max(self._residents.values(), key=lambda one: one.order)
        self._load_times.unloading(newest.weights, newest.order, started_s - newest.loaded_at_s)
        self._residents.go(tracked, started_s)
        repeat_s = 0.0
        while self._residents.get(tracked.weights) is tracked:
            if self._now() >= deadline_s or tracked.in_flight:
                self._residents.stay(tracked)
                return False
            if self._now() >= repeat_s:
                await self._ask_for(tracked)
                repeat_s = self._now() + REPEAT_UNLOAD_S
            try:
                await self._world.refresh_surely()
            except UpstreamError:
                self._residents.stay(tracked)
                raise
            if self._residents.get(tracked.weights) is tracked:
                await asyncio.sleep(self._settings.poll_s)
        if before is not None:  # in verify mode there is nothing to wait for
            await self._wait_for_memory(tracked, before, started_s)
        self._cards.memory_is_back()
        self._load_times.unloaded(self._now() - started_s)
        return True

    async def _ask_for(self, tracked: Tracked) -> None:
        """Ask Ollama to unload it; under another name of its weights if its own was deleted.

        If there is none, Ollama unloads it only when its lease ends.
        """
        try:
            await self._world.server.unload(tracked.name)
        except ModelNotFound:
            other = self._world.installed.by_weights(tracked.weights)
            if other is not None:
                with suppress(ModelNotFound):
                    await self._world.server.unload(other.name)

    async def _wait_for_memory(self, tracked: Tracked, before: tuple[Gpu, ...], started_s: float) -> None:
        """Wait until the probe shows the runner's memory as free, for at most `memory_timeout_s`: drivers may lag.

        Others may take it at once: the wait also ends when something moved and nothing moves any more.
        """
        deadline_s = self._now() + self._settings.memory_timeout_s
        back = {card: int(held * BACK_SHARE) for card, held in tracked.held_bytes.items() if held}
        awaited = {gpu.index: gpu.free_bytes + back[gpu.index] for gpu in before if gpu.index in back}
        while self._now() < deadline_s and (gpus := self._cards.gpus) is not None:
            if all(gpu.free_bytes >= min(awaited.get(gpu.index, 0), gpu.total_bytes) for gpu in gpus):
                return
            if self._cards.has_moved_since(started_s):
                return
            await self.pause()

    async def pause(self) -> None:
        """Wait until the next reading, and read."""
        await asyncio.sleep(self._settings.poll_s)
        await self._world.refresh_fresh()
