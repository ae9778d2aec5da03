"""The story of a switch: make room (unload, wait) → load by itself → verify → learn.

A switch belongs to the router, never to a client's connection. Only one runs at a time per backend (`Line` starts
them); every step has a deadline and ends in a stated `SwitchResult`, so none holds the card indefinitely.

Each wait has a cause in how Ollama works (docs/ollama.md, "Keep-alive and unload"): its own wait for memory after an
eviction is broken, it spills instead of refusing, and it evicts neighbours by stale figures. So we unload ourselves,
youngest first, until `/api/ps` has dropped the model and the probe has its memory back, give Ollama one more tick, and
load with exactly the options that follow.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from router.backend.cards import BACK_SHARE
from router.backend.lessons import Lessons
from router.backend.residents import Tracked
from router.backend.world import World
from router.config import Config
from router.core.decision.switching import Plan
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu
from router.core.units import GIB
from router.errors import LoadFailed, ModelNotFound, RouterError
from router.telemetry import Spilled, Switched, Telemetry

SEEN_SHARE = 0.5
"""A load of which the probe saw less than this share of ps' figure is taken for a spill (AMX buffers count as VRAM)."""

FOREIGN_BYTES = GIB
"""A load that took more than a quarter and this above what was expected was not alone: somebody else took memory."""

CEILING_SLACK_BYTES = GIB
"""Without a probe: what may be left free beside a load that spilled (layers, margins)."""

REPEAT_UNLOAD_S = 2.0
"""An unload does nothing while the runner is busy, so it is repeated this often until the model has gone."""

LEASE_MARGIN_S = 30.0
LEAST_LEASE_S, LONGEST_LEASE_S = 60.0, 3600.0
"""Bounds of the keep_alive that Ollama is given: finite, so that nothing stays loaded when the router dies."""


class SwitchResult(Enum):
    """How a switch ended; the value is the text for the log."""

    DONE = "done"
    MOVED = "the loaded models or the free memory changed; decide again"
    SPILLED = "spilled; unloaded again and learned"
    FAILED = "the load failed"
    ABANDONED = "no request waits for it any more"
    AWAY = "Ollama went away"


@dataclass(frozen=True, slots=True)
class Target:
    """What a switch shall make resident, by which plan."""

    facts: ModelFacts
    plan: Plan

    @property
    def weights(self) -> str:
        return self.facts.weights or self.facts.name


@dataclass(frozen=True, slots=True)
class LoadLook:
    """What a load looks like once it has returned.

    `taken` is what the probe saw it take per card. `is_full`: all of it is on the GPU. `is_seen`: the readings before
    and after say something about this load. `is_plausible`: nobody else took memory meanwhile.
    """

    taken: dict[int, int]
    is_full: bool
    is_seen: bool
    is_plausible: bool


def lease_for(keep_alive_s: float) -> float:
    """The keep_alive that Ollama is given with a load, in seconds, where ours is `keep_alive_s`."""
    return min(max(keep_alive_s + LEASE_MARGIN_S, LEAST_LEASE_S), LONGEST_LEASE_S)


def is_embedder(facts: ModelFacts | None) -> bool:
    """True for a model that only embeds: loaded through /api/embed, with Ollama's default options."""
    return facts is not None and "embedding" in facts.capabilities and "completion" not in facts.capabilities


class Residency:
    """Carries out switches and single unloads on one backend."""

    def __init__(self, world: World, lessons: Lessons, config: Config, telemetry: Telemetry) -> None:
        self.lessons = lessons
        self._failures: dict[str, LoadFailed] = {}
        self._world = world
        self._residents = world.residents
        self._cards = world.cards
        self._settings = config.switch
        self._lease_s = lease_for(config.defaults.keep_alive_s)
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time

    def last_failure(self, weights: str) -> LoadFailed | None:
        """Ollama's own error of the last load of `weights`; None once it has been loaded."""
        return self._failures.get(weights)

    # --- the story of a switch ---------------------------------------------------------------------------------

    async def switch(self, target: Target) -> SwitchResult:
        """Make `target` resident. Never raises a RouterError: each failure is a result, an event and a lesson."""
        started_s = self._now()
        name, evicted = target.facts.name, tuple(self._name(weights) for weights in target.plan.evict)
        self._telemetry.emit(Switched(phase="started", model=name, evicted=evicted))
        try:
            result, text = await self._switch(target)
        except LoadFailed as error:
            result, text = SwitchResult.FAILED, error.message
            self._failures[target.weights] = error
        except RouterError as error:  # Ollama restarts, say: no fault of the model
            result, text = SwitchResult.AWAY, error.message
        phase = "finished" if result is SwitchResult.DONE else "failed"
        error_text = text or ("" if result is SwitchResult.DONE else result.value)
        took_s = self._now() - started_s
        self._telemetry.emit(Switched(phase, name, evicted, duration_s=took_s, error=error_text))
        return result

    async def _switch(self, target: Target) -> tuple[SwitchResult, str]:
        if not await self._make_room(target):
            return SwitchResult.MOVED, "a resident is busy again or would not go"
        if not self._world.wanted.get(target.weights):
            return SwitchResult.ABANDONED, ""
        if target.weights in self._residents and not target.plan.adopts:
            return SwitchResult.MOVED, "somebody else has loaded it meanwhile"
        before = self._cards.gpus
        if before is not None and not _still_fits(target.plan, before):
            return SwitchResult.MOVED, "memory was taken meanwhile"
        present = self._residents.keys() - {target.weights}
        await self._load(target)
        await self._world.refresh_fresh()
        has_left = not present <= self._residents.keys()
        return await self._verify(target, before, has_left=has_left)

    # --- make room ---------------------------------------------------------------------------------------------

    async def _make_room(self, target: Target) -> bool:
        """Unload what must go, one by one; True when all have gone and the cards' figures are fresh."""
        await self._world.refresh_fresh()
        settled_s = 0.0
        for weights in target.plan.evict:
            tracked = self._residents.get(weights)
            if tracked is None or not self._world.wanted.get(target.weights):
                continue
            if tracked.in_flight or not await self.unload(tracked):
                return False
            settled_s = self._now() + self._settings.settle_s
        if settled_s:  # Ollama reads free memory late: a load that comes sooner would count the old figure
            await asyncio.sleep(max(0.0, settled_s - self._now()))
            await self._world.refresh_fresh()
        while self._cards.is_memory_returning():  # of a model that somebody else has unloaded
            await self._pause()
        return True

    async def unload(self, tracked: Tracked) -> bool:
        """Unload a resident and wait until ps has dropped it and its memory is back; False when it would not go."""
        before = self._cards.gpus
        deadline_s = self._now() + self._settings.unload_timeout_s
        self._residents.go(tracked, self._now())
        repeat_s = 0.0
        while self._residents.get(tracked.weights) is tracked:
            if self._now() >= deadline_s or tracked.in_flight:
                self._residents.stay(tracked)
                return False
            if self._now() >= repeat_s:
                with suppress(ModelNotFound):  # its tag was deleted while it is loaded: only time unloads it
                    await self._world.server.unload(tracked.name)
                repeat_s = self._now() + REPEAT_UNLOAD_S
            await self._world.refresh_fresh()
            if self._residents.get(tracked.weights) is tracked:
                await asyncio.sleep(self._settings.poll_s)
        if before is not None:
            await self._wait_for_memory(tracked, before)
        self._cards.memory_is_back()
        return True

    async def _wait_for_memory(self, tracked: Tracked, before: tuple[Gpu, ...]) -> None:
        """Wait until the probe has seen the runner's memory come back; a driver may be late by seconds."""
        deadline_s = self._now() + self._settings.memory_timeout_s
        awaited = {gpu.index: gpu.free_bytes + int(tracked.held_bytes.get(gpu.index, 0) * BACK_SHARE) for gpu in before}
        while self._now() < deadline_s:
            gpus = self._cards.gpus
            if gpus is None or all(gpu.free_bytes >= awaited.get(gpu.index, 0) for gpu in gpus):
                return
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._settings.poll_s)
        await self._world.refresh_fresh()

    # --- load, verify, learn -----------------------------------------------------------------------------------

    async def _load(self, target: Target) -> None:
        options, embedding = target.plan.options, is_embedder(target.facts)
        await self._world.server.load(target.facts.name, options, keep_alive_s=self._lease_s, embedding=embedding)

    async def renew(self, tracked: Tracked) -> None:
        """Prolong Ollama's lease of a resident by a load-only request with exactly its options."""
        embedding = is_embedder(self._world.installed.by_weights(tracked.weights))
        await self._world.server.load(
            tracked.name, tracked.sent_options, keep_alive_s=tracked.lease_s, embedding=embedding
        )

    async def _verify(
        self, target: Target, before: tuple[Gpu, ...] | None, *, has_left: bool
    ) -> tuple[SwitchResult, str]:
        """Judge what was loaded. `has_left`: another resident went meanwhile, so the readings say nothing of it."""
        tracked = self._residents.get(target.weights)
        if tracked is None:  # a real Ollama does this: the load is answered with 200, and ps shows nothing
            return SwitchResult.MOVED, "the load came back, but nothing is loaded"
        plan, row = target.plan, tracked.row
        free_before = {} if plan.adopts else {gpu.index: gpu.free_bytes for gpu in before or ()}
        tracked.loaded(plan.options, self._lease_s, self._now(), free_before)
        look = self._look_at(plan, tracked, before, has_left=has_left)
        if look.is_full and look.is_seen and look.is_plausible:
            tracked.measured(look.taken)
        if not (plan.adopts or has_left) and (look.is_plausible or not look.is_full):
            taken_bytes = sum(look.taken.values()) if look.is_seen else 0
            is_spilled = not look.is_full
            self.lessons.learn(target.facts, plan, row, before, taken_bytes=taken_bytes, is_spilled=is_spilled)
        if self._cards.probe is None and row.size_vram_bytes == 0:
            self._cards.mark_no_gpu()
            return SwitchResult.MOVED, "nothing was placed on a GPU: there is none"
        if look.is_full and row.context_length >= (plan.options.num_ctx or 0):
            self._failures.pop(target.weights, None)
            return SwitchResult.DONE, ""
        return await self._undo(tracked, is_ceiling=before is None and not look.is_full)

    def _look_at(self, plan: Plan, tracked: Tracked, before: tuple[Gpu, ...] | None, *, has_left: bool) -> LoadLook:
        """Compare ps' row with what the probe saw."""
        row, after = tracked.row, self._cards.gpus
        taken = {} if plan.adopts else _taken(before, after)
        taken_bytes = sum(taken.values())
        has_readings = before is not None and after is not None
        is_seen = has_readings and self._cards.is_measured and not (plan.adopts or has_left)
        if has_readings and not self._cards.is_measured and plan.cards:
            self._residents.assume(tracked, self._cards.assumed_on(row, plan.cards))
        is_full = 0 < row.size_vram_bytes >= row.size_bytes
        if is_seen and taken_bytes < row.size_vram_bytes * SEEN_SHARE:
            is_full = False
        most_bytes = max(plan.expected_bytes, row.size_vram_bytes) * 1.25 + FOREIGN_BYTES
        return LoadLook(taken, is_full, is_seen, taken_bytes <= most_bytes)

    async def _undo(self, tracked: Tracked, *, is_ceiling: bool) -> tuple[SwitchResult, str]:
        """It has spilled: no request may reach it, so it is unloaded again."""
        row = tracked.row
        self._residents.spilled(tracked)
        if is_ceiling and len(self._residents) == 1:
            self._cards.note_ceiling(row.size_vram_bytes + CEILING_SLACK_BYTES)
        self._telemetry.emit(Spilled(tracked.name, row.size_bytes, row.size_vram_bytes))
        await self.unload(tracked)
        return SwitchResult.SPILLED, f"{row.size_bytes - row.size_vram_bytes} bytes were not on the GPU"

    def _name(self, weights: str) -> str:
        tracked = self._residents.get(weights)
        return tracked.name if tracked is not None else weights


def _still_fits(plan: Plan, gpus: tuple[Gpu, ...]) -> bool:
    """Whether the cards of the plan still have what it counted on, per card."""
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    return all(free.get(index, 0) >= need for index, need in zip(plan.cards, plan.need_by_card, strict=True))


def _taken(before: tuple[Gpu, ...] | None, after: tuple[Gpu, ...] | None) -> dict[int, int]:
    """Bytes that a load took per card, as the probe saw it; {} without readings."""
    if before is None or after is None:
        return {}
    free = {gpu.index: gpu.free_bytes for gpu in after}
    lost = {gpu.index: gpu.free_bytes - free.get(gpu.index, gpu.free_bytes) for gpu in before}
    return {index: count for index, count in lost.items() if count > 0}
