"""The story of one switch: make room (unload, wait) → load by itself → verify → learn.

A switch belongs to the router, never to a client's connection. Only one runs at a time per backend (`queueing.Line`
sees to it); every step has a deadline and ends in a stated `Ending`, so none holds the card for ever.

Why so careful (scheduler.md §11): Ollama's own wait for memory after an eviction is broken, it spills instead of
refusing, and it evicts neighbours by stale figures. So we unload ourselves, youngest first, until `/api/ps` has dropped
the model and the probe has its memory back, give Ollama one more tick, and load with exactly the options that follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from router.adapters.store import LearnedStore
from router.backend.world import BACK_SHARE, Tracked, World
from router.core.decision.need import run_options
from router.core.decision.switching import Plan
from router.core.learning.residuals import Learned, Observation
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, RunnerOptions
from router.core.ollama.scheduler import ServerSettings
from router.errors import LoadFailed, ModelNotFound, RouterError
from router.telemetry import Measured, Spilled, Switched, Telemetry

SEEN_SHARE = 0.5
"""A load of which the probe saw less than this share of ps' figure is taken for a spill (AMX buffers count as VRAM)."""

FOREIGN_BYTES = 1 << 30
"""A load that took more than a quarter and this above what was expected was not alone: somebody else took memory."""

CEILING_SLACK_BYTES = 1 << 30
"""Without a probe: what may be left free beside a load that spilled (layers, margins)."""


class Ending(Enum):
    """How a switch ended."""

    DONE = "done"
    MOVED = "the world moved; decide again"
    SPILLED = "spilled; unloaded again and learned"
    FAILED = "the load failed"
    ABANDONED = "nobody waits for it any more"
    AWAY = "the upstream went away"


@dataclass(frozen=True, slots=True)
class Target:
    """What a switch shall make resident, by which plan."""

    facts: ModelFacts
    plan: Plan

    @property
    def weights(self) -> str:
        return self.facts.weights or self.facts.name

    @property
    def is_embedding(self) -> bool:
        return is_embedder(self.facts)


@dataclass(frozen=True, slots=True)
class SwitchSettings:
    """Deadlines and waits of a switch, each a config key (`switch.*`)."""

    settle_s: float = 0.6
    unload_timeout_s: float = 15.0
    memory_timeout_s: float = 10.0
    poll_s: float = 0.1
    lease_s: float = 300.0


def is_embedder(facts: ModelFacts) -> bool:
    """True for a model that only embeds: it is loaded by another route, and at Ollama's automatic options."""
    return "embedding" in facts.capabilities and "completion" not in facts.capabilities


class Residency:
    """Carries out switches and single unloads on one backend, and keeps what was learned from them."""

    def __init__(
        self,
        world: World,
        store: LearnedStore,
        settings: SwitchSettings,
        server_settings: Callable[[], ServerSettings],
        telemetry: Telemetry,
        unix_now: Callable[[], float],
    ) -> None:
        self.learned = Learned.of(())
        self.last_failure: dict[str, LoadFailed] = {}
        self._observations: list[Observation] = []
        self._world = world
        self._store = store
        self._settings = settings
        self._server_settings = server_settings
        self._telemetry = telemetry
        self._unix_now = unix_now

    async def recall(self) -> None:
        """Take over what earlier runs of the router have learned."""
        self._observations = list(await self._store.all())
        self.learned = Learned.of(self._observations)

    async def switch(self, target: Target) -> Ending:
        """Make `target` resident. Never raises a RouterError: each failure is an Ending, an event and a lesson."""
        started_s = _now()
        evicted = tuple(self._name(weights) for weights in target.plan.evict)
        self._telemetry.emit(Switched(phase="started", model=target.facts.name, evicted=evicted))
        try:
            ending, text = await self._switch(target)
        except LoadFailed as error:
            ending, text = Ending.FAILED, error.message
            self.last_failure[target.weights] = error
        except RouterError as error:  # it restarts, say: no fault of the model
            ending, text = Ending.AWAY, error.message
        finally:
            self._world.changed()
        phase = "finished" if ending is Ending.DONE else "failed"
        self._telemetry.emit(
            Switched(
                phase=phase,
                model=target.facts.name,
                evicted=evicted,
                duration_s=_now() - started_s,
                error=text or ("" if ending is Ending.DONE else ending.value),
            )
        )
        return ending

    async def _switch(self, target: Target) -> tuple[Ending, str]:
        if not await self._make_room(target):
            return Ending.MOVED, "a resident is busy again or would not go"
        if not self._world.wanted.get(target.weights):
            return Ending.ABANDONED, ""
        if target.weights in self._world.residents and not target.plan.adopts:
            return Ending.MOVED, "somebody else has loaded it meanwhile"
        before = self._world.gpus
        if before is not None and not _still_fits(target.plan, before):
            return Ending.MOVED, "memory was taken meanwhile"
        present = self._world.residents.keys() - {target.weights}
        await self._load(target)
        await self._world.refresh_fresh()
        has_left = not present <= self._world.residents.keys()
        return await self._verify(target, before, has_left=has_left)

    # --- make room ---------------------------------------------------------------------------------------------

    async def _make_room(self, target: Target) -> bool:
        """Unload what must go, one by one; True when all have gone and the cards' figures are fresh."""
        await self._world.refresh_fresh()
        left_s = 0.0
        for weights in target.plan.evict:
            tracked = self._world.residents.get(weights)
            if tracked is None or not self._world.wanted.get(target.weights):
                continue
            if tracked.in_flight or not await self.unload(tracked):
                return False
            left_s = _now() + self._settings.settle_s
        if left_s:
            await asyncio.sleep(max(0.0, left_s - _now()))
            await self._world.refresh_fresh()
        while self._world.is_memory_returning():  # of one that somebody else has unloaded
            await asyncio.sleep(self._settings.poll_s)
            await self._world.refresh_fresh()
        return True

    async def unload(self, tracked: Tracked) -> bool:
        """Unload a resident and wait until ps has dropped it and its memory is back; False when it would not go."""
        before = self._world.gpus
        deadline_s = _now() + self._settings.unload_timeout_s
        self._world.going(tracked)
        again_s = 0.0
        while self._world.residents.get(tracked.weights) is tracked:
            if _now() >= deadline_s or tracked.in_flight:
                self._world.stays(tracked)
                return False
            if _now() >= again_s:  # an unload does nothing while the runner is busy: say it again
                with suppress(ModelNotFound):  # its tag was deleted while it is loaded: only time unloads it
                    await self._world.server.unload(tracked.name)
                again_s = _now() + 2.0
            await self._world.refresh_fresh()
            if self._world.residents.get(tracked.weights) is tracked:
                await asyncio.sleep(self._settings.poll_s)
        if before is not None:
            await self._wait_for_memory(tracked, before)
        self._world.memory_is_back()
        return True

    async def renew(self, tracked: Tracked) -> None:
        """Prolong Ollama's lease of a resident by a load-only request with exactly its options."""
        facts = self._facts(tracked)
        await self._world.server.load(
            tracked.name,
            self.sent_options(tracked),
            keep_alive_s=tracked.lease_s,
            embedding=facts is not None and is_embedder(facts),
        )

    async def _wait_for_memory(self, tracked: Tracked, before: tuple[Gpu, ...]) -> None:
        """Until the probe has seen the runner's memory come back; a driver may be late by seconds."""
        deadline_s = _now() + self._settings.memory_timeout_s
        wanted = {gpu.index: gpu.free_bytes + int(tracked.held_bytes.get(gpu.index, 0) * BACK_SHARE) for gpu in before}
        while _now() < deadline_s:
            gpus = self._world.gpus
            if gpus is None or all(gpu.free_bytes >= wanted.get(gpu.index, 0) for gpu in gpus):
                return
            await asyncio.sleep(self._settings.poll_s)
            await self._world.refresh_fresh()

    def _name(self, weights: str) -> str:
        tracked = self._world.residents.get(weights)
        return tracked.name if tracked is not None else weights

    def _facts(self, tracked: Tracked) -> ModelFacts | None:
        return next((f for f in self._world.catalog.values() if f.weights == tracked.weights), None)

    # --- load, verify, learn -----------------------------------------------------------------------------------

    async def _load(self, target: Target) -> None:
        await self._world.server.load(
            target.facts.name, target.plan.options, keep_alive_s=self._settings.lease_s, embedding=target.is_embedding
        )

    async def _verify(self, target: Target, before: tuple[Gpu, ...] | None, *, has_left: bool) -> tuple[Ending, str]:
        """Look at what was loaded. `has_left`: another resident went meanwhile, so the readings say nothing of it."""
        tracked = self._world.residents.get(target.weights)
        if tracked is None:  # seen on a real Ollama: a load answered 200 with nothing in ps
            return Ending.MOVED, "the load came back, but nothing is loaded"
        tracked.options, tracked.lease_s = target.plan.options, self._settings.lease_s
        tracked.loaded_at_s = _now()
        row = tracked.row
        taken = {} if target.plan.adopts else _taken(before, self._world.gpus)
        if before is not None and not target.plan.adopts:
            tracked.free_at_load_bytes = {gpu.index: gpu.free_bytes for gpu in before}
        is_full = row.size_vram_bytes > 0 and row.size_vram_bytes >= row.size_bytes
        taken_bytes = sum(taken.values())
        has_readings = before is not None and self._world.gpus is not None
        is_seen = has_readings and self._world.is_measured and not (target.plan.adopts or has_left)
        if has_readings and not self._world.is_measured and target.plan.cards:
            self._world.assume_held(tracked, target.plan.cards)
        if is_seen and taken_bytes < row.size_vram_bytes * SEEN_SHARE:
            is_full = False
        is_plausible = taken_bytes <= max(target.plan.expected_bytes, row.size_vram_bytes) * 1.25 + FOREIGN_BYTES
        if is_full and is_seen and is_plausible:
            tracked.held_bytes, tracked.is_measured = taken, True
        if not (target.plan.adopts or has_left) and (is_plausible or not is_full):
            self._learn(target, taken_bytes if is_seen else 0, before, is_spilled=not is_full)
        if self._world.probe is None and row.size_vram_bytes == 0:
            self._world.mark_no_gpu()
            return Ending.MOVED, "nothing was placed on a GPU: there is none"
        if is_full and row.context_length >= (target.plan.options.num_ctx or 0):
            self.last_failure.pop(target.weights, None)
            return Ending.DONE, ""
        tracked.is_spilled = True
        if before is None and len(self._world.residents) == 1 and not is_full:
            self._world.note_ceiling(row.size_vram_bytes + CEILING_SLACK_BYTES)
        self._world.changed()
        self._telemetry.emit(
            Spilled(model=tracked.name, size_bytes=row.size_bytes, size_vram_bytes=row.size_vram_bytes)
        )
        await self.unload(tracked)
        return Ending.SPILLED, f"{row.size_bytes - row.size_vram_bytes} bytes were not on the GPU"

    def _learn(self, target: Target, taken_bytes: int, before: tuple[Gpu, ...] | None, *, is_spilled: bool) -> None:
        settings, row = self._server_settings(), self._world.residents[target.weights].row
        asked = run_options(target.facts, target.plan.counted or target.plan.options, settings)
        cards = [gpu for gpu in before or () if gpu.index in target.plan.cards]
        observation = Observation(
            weights=target.facts.weights,
            num_ctx=asked.num_ctx or row.context_length,
            num_batch=asked.num_batch,
            num_parallel=asked.num_parallel,
            kv_type=asked.kv_type,
            gpu_names=tuple(gpu.name for gpu in cards),
            ollama_version=self._world.version,
            measured_bytes=taken_bytes,
            predicted_bytes=target.plan.expected_bytes,
            spilled=is_spilled,
            free_before_bytes=min((gpu.free_bytes for gpu in cards), default=0),
            at_s=self._unix_now(),
            main_gpu=target.plan.options.main_gpu,
            size_bytes=row.size_bytes,
            size_vram_bytes=row.size_vram_bytes,
            cache_bytes=target.plan.cache_bytes,
            margin_bytes=settings.fit_target_bytes,
        )
        if taken_bytes and not is_spilled and observation.predicted_bytes:
            self._telemetry.emit(Measured(target.facts.name, observation.predicted_bytes, taken_bytes))
        self._observations.append(observation)
        self.learned = Learned.of(self._observations)
        task = asyncio.create_task(self._keep(observation))
        task.add_done_callback(lambda done: done.exception())

    async def _keep(self, observation: Observation) -> None:
        with suppress(RouterError):
            await self._store.put(observation)

    def sent_options(self, tracked: Tracked) -> RunnerOptions:
        """The options that each request to a resident carries, so that it never reloads."""
        if tracked.options is not None:
            return tracked.options
        return RunnerOptions(num_ctx=tracked.row.context_length)


def _still_fits(plan: Plan, gpus: tuple[Gpu, ...]) -> bool:
    """Whether the cards of the plan still have what it counted on, per card."""
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    return all(free.get(index, 0) >= need for index, need in zip(plan.cards, plan.need_by_card, strict=True))


def _taken(before: tuple[Gpu, ...] | None, after: tuple[Gpu, ...] | None) -> dict[int, int]:
    """What a load took per card, as the probe saw it; {} without readings."""
    if before is None or after is None:
        return {}
    free = {gpu.index: gpu.free_bytes for gpu in after}
    lost = {gpu.index: gpu.free_bytes - free.get(gpu.index, gpu.free_bytes) for gpu in before}
    return {index: count for index, count in lost.items() if count > 0}


def _now() -> float:
    return asyncio.get_running_loop().time()
