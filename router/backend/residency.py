"""A switch: make room (unload, wait) → load → verify → learn.

A switch belongs to the router, never to a client's connection. At most one runs per backend (`Line` starts them). Every
step has a deadline and ends in a `SwitchResult`, so that no switch occupies the card indefinitely.

Each wait has its reason in how Ollama works (docs/ollama.md, "Keep-alive and unload"): its own wait for memory after an
eviction is broken, it spills instead of refusing, and it evicts other models by stale figures. So the router unloads
models itself, youngest first, until `/api/ps` no longer lists them and the probe shows their memory as free; gives
Ollama time to notice; and loads with exactly the options of the requests that follow.
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
from router.errors import LoadFailed, ModelNotFound, RouterError, UpstreamTimeout
from router.telemetry import Spilled, Switched, Telemetry

SEEN_SHARE = 0.5
"""A load counts as a spill if the probe saw less than this share of ps' figure (which counts AMX buffers as VRAM)."""

FOREIGN_BYTES = GIB
"""A load that took more than 1.25 times the expected bytes plus this was not alone: another program took memory."""

CEILING_SLACK_BYTES = GIB
"""Without a probe: memory that may be unused beside a load that spilled (part of a layer, margins)."""

REPEAT_UNLOAD_S = 2.0
"""Interval at which an unload is repeated until the model has gone: Ollama ignores it while the runner is busy."""

LEASE_MARGIN_S = 30.0
MIN_LEASE_S, MAX_LEASE_S = 60.0, 3600.0
"""Bounds of the keep_alive sent to Ollama: finite, so that no model stays loaded indefinitely if the router dies."""


class SwitchResult(Enum):
    """How a switch ended; the value is the text for the log."""

    DONE = "done"
    MOVED = "the loaded models or the free memory changed; decide again"
    SPILLED = "not fully on the GPU; unloaded again"
    FAILED = "the load failed"
    ABANDONED = "no request waits for it any more"
    AWAY = "Ollama went away"


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a switch loads, and the plan for it."""

    facts: ModelFacts
    plan: Plan

    @property
    def weights(self) -> str:
        return self.facts.weights or self.facts.name


@dataclass(frozen=True, slots=True)
class LoadLook:
    """The state after a load has returned.

    `taken` is the memory in bytes per card that the probe saw it take. `is_full`: the model is fully on the GPU.
    `is_seen`: the readings before and after the load measure it. `is_plausible`: no other program took memory.
    """

    taken: dict[int, int]
    is_full: bool
    is_seen: bool
    is_plausible: bool


def lease_for(keep_alive_s: float) -> float:
    """Return the keep_alive in seconds to send with a load that the router itself keeps for `keep_alive_s`."""
    return min(max(keep_alive_s + LEASE_MARGIN_S, MIN_LEASE_S), MAX_LEASE_S)


def is_embedder(facts: ModelFacts | None) -> bool:
    """Return True for a model that only embeds: loaded through /api/embed, with Ollama's default options."""
    return facts is not None and "embedding" in facts.capabilities and "completion" not in facts.capabilities


class Residency:
    """Carries out switches, unloads and renewals on one backend."""

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
        """Return Ollama's own error if the last load of `weights` failed, else None."""
        return self._failures.get(weights)

    # --- the steps of a switch ---------------------------------------------------------------------------------

    async def switch(self, target: Target) -> SwitchResult:
        """Make `target` resident. Never raises a RouterError: a failure is a result and an event."""
        started_s = self._now()
        name, evicted = target.facts.name, tuple(self._name(weights) for weights in target.plan.evict)
        self._telemetry.emit(Switched(phase="started", model=name, evicted=evicted))
        try:
            result, text = await self._switch(target)
        except LoadFailed as error:
            result, text = SwitchResult.FAILED, error.message
            self._failures[target.weights] = error
        except RouterError as error:  # Ollama restarts, for example: the model is not to blame
            result, text = SwitchResult.AWAY, error.message
        phase = "finished" if result is SwitchResult.DONE else "failed"
        error_text = text or ("" if result is SwitchResult.DONE else result.value)
        took_s = self._now() - started_s
        self._telemetry.emit(Switched(phase, name, evicted, duration_s=took_s, error=error_text))
        return result

    async def _switch(self, target: Target) -> tuple[SwitchResult, str]:
        if not await self._make_room(target):
            return SwitchResult.MOVED, "a resident is busy again or could not be unloaded"
        # Making room takes seconds: check again that the plan is still wanted and possible.
        if not self._world.wanted.get(target.weights):
            return SwitchResult.ABANDONED, ""
        if target.weights in self._residents and not target.plan.adopts:
            return SwitchResult.MOVED, "another client has loaded it meanwhile"
        before = self._cards.gpus
        if before is not None and not _still_fits(target.plan, before):
            return SwitchResult.MOVED, "memory was taken meanwhile"
        # Whether Ollama evicted another model during the load; then free memory says nothing about this one.
        present = self._residents.keys() - {target.weights}
        await self._load(target)
        await self._world.refresh_fresh()
        has_left = not present <= self._residents.keys()
        return await self._verify(target, before, has_left=has_left)

    # --- make room ---------------------------------------------------------------------------------------------

    async def _make_room(self, target: Target) -> bool:
        """Unload the residents that the plan evicts, one by one, and read again; return True if all have gone."""
        await self._world.refresh_fresh()
        settled_s = 0.0
        for weights in target.plan.evict:
            tracked = self._residents.get(weights)
            if tracked is None or not self._world.wanted.get(target.weights):
                continue
            if tracked.in_flight or not await self.unload(tracked):  # a request is never cut off for a switch
                return False
            settled_s = self._now() + self._settings.settle_s
        if settled_s:  # Ollama updates its figure of free memory late: an earlier load would be placed by the old one
            await asyncio.sleep(max(0.0, settled_s - self._now()))
            await self._world.refresh_fresh()
        while self._cards.is_memory_returning():  # of a model that left ps without our unloading it
            await self._pause()
        return True

    async def unload(self, tracked: Tracked) -> bool:
        """Unload a resident and wait for its memory; return False if it is still listed after `unload_timeout_s`.

        It has gone when ps no longer lists it and the probe shows its memory as free.
        """
        before = self._cards.gpus
        deadline_s = self._now() + self._settings.unload_timeout_s
        self._residents.go(tracked, self._now())
        repeat_s = 0.0
        while self._residents.get(tracked.weights) is tracked:
            if self._now() >= deadline_s or tracked.in_flight:
                self._residents.stay(tracked)
                return False
            if self._now() >= repeat_s:
                with suppress(ModelNotFound):  # its tag was deleted: Ollama unloads it only when its lease ends
                    await self._world.server.unload(tracked.name)
                repeat_s = self._now() + REPEAT_UNLOAD_S
            await self._world.refresh_fresh()
            if self._residents.get(tracked.weights) is tracked:
                await asyncio.sleep(self._settings.poll_s)
        if before is not None:  # in verify mode there is nothing to wait for
            await self._wait_for_memory(tracked, before)
        self._cards.memory_is_back()
        return True

    async def _wait_for_memory(self, tracked: Tracked, before: tuple[Gpu, ...]) -> None:
        """Wait until the probe shows the runner's memory as free, for at most `memory_timeout_s`: drivers may lag."""
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
        """Load it. Raises LoadFailed with the status for the clients that wait: 404 not found, 504 no end in time."""
        name, options, embedding = target.facts.name, target.plan.options, is_embedder(target.facts)
        try:
            await self._world.server.load(name, options, keep_alive_s=self._lease_s, embedding=embedding)
        except ModelNotFound as error:
            self._world.installed.mark_changed()
            raise LoadFailed(error.message, status=error.status) from error
        except UpstreamTimeout as error:
            text = f"loading {name} did not end within {self._settings.load_timeout_s:g} s"
            raise LoadFailed(text, status=error.status) from error

    async def renew(self, tracked: Tracked) -> None:
        """Renew Ollama's lease of a resident by a request without a prompt and with exactly its options."""
        embedding = is_embedder(self._world.installed.by_weights(tracked.weights))
        await self._world.server.load(
            tracked.name, tracked.sent_options, keep_alive_s=tracked.lease_s, embedding=embedding
        )

    async def _verify(
        self, target: Target, before: tuple[Gpu, ...] | None, *, has_left: bool
    ) -> tuple[SwitchResult, str]:
        """Verify a load by ps and the probe. `has_left`: another resident left, so the readings do not measure it."""
        tracked = self._residents.get(target.weights)
        if tracked is None:  # observed: Ollama answers the load with 200, and ps lists nothing
            return SwitchResult.MOVED, "the load returned, but the model is not loaded"
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
            return SwitchResult.MOVED, "the load used no VRAM: there is no GPU"
        if look.is_full and row.context_length >= (plan.options.num_ctx or 0):
            self._failures.pop(target.weights, None)
            return SwitchResult.DONE, ""
        return await self._undo(tracked, is_ceiling=before is None and not look.is_full)

    def _look_at(self, plan: Plan, tracked: Tracked, before: tuple[Gpu, ...] | None, *, has_left: bool) -> LoadLook:
        """Compare ps' row with the readings of the probe."""
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
        max_bytes = max(plan.expected_bytes, row.size_vram_bytes) * 1.25 + FOREIGN_BYTES
        return LoadLook(taken, is_full, is_seen, taken_bytes <= max_bytes)

    async def _undo(self, tracked: Tracked, *, is_ceiling: bool) -> tuple[SwitchResult, str]:
        """Unload a model that has spilled, before any request reaches it."""
        row = tracked.row
        self._residents.spilled(tracked)  # first: no request may enter it while it is being unloaded
        if is_ceiling and len(self._residents) == 1:
            self._cards.note_ceiling(row.size_vram_bytes + CEILING_SLACK_BYTES)
        self._telemetry.emit(Spilled(tracked.name, row.size_bytes, row.size_vram_bytes))
        await self.unload(tracked)
        return SwitchResult.SPILLED, f"{row.size_bytes - row.size_vram_bytes} bytes were not on the GPU"

    def _name(self, weights: str) -> str:
        tracked = self._residents.get(weights)
        return tracked.name if tracked is not None else weights


def _still_fits(plan: Plan, gpus: tuple[Gpu, ...]) -> bool:
    """Return True if each card of the plan still has the free memory that the plan needs."""
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    return all(free.get(index, 0) >= need for index, need in zip(plan.cards, plan.need_by_card, strict=True))


def _taken(before: tuple[Gpu, ...] | None, after: tuple[Gpu, ...] | None) -> dict[int, int]:
    """Return the bytes per card that a load took between two readings; {} without readings."""
    if before is None or after is None:
        return {}
    free = {gpu.index: gpu.free_bytes for gpu in after}
    lost = {gpu.index: gpu.free_bytes - free.get(gpu.index, gpu.free_bytes) for gpu in before}
    return {index: count for index, count in lost.items() if count > 0}
