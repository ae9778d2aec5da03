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

from router.backend.conclusions import Conclusions, Verified
from router.backend.lessons import Lessons
from router.backend.residents import Tracked
from router.backend.switches import SwitchResult, Target
from router.backend.unloading import Unloading
from router.backend.verification import look_at
from router.backend.world import World
from router.config import Config
from router.core.decision.switching import Plan
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu
from router.errors import LoadFailed, ModelNotFound, RouterError, UpstreamTimeout
from router.telemetry import Switched, Telemetry

LEASE_MARGIN_S = 30.0
MIN_LEASE_S, MAX_LEASE_S = 60.0, 3600.0
"""Bounds of the keep_alive sent to Ollama: finite, so that no model stays loaded indefinitely if the router dies."""


def lease_for(keep_alive_s: float) -> float:
    """Return the keep_alive in seconds to send with a load that the router itself keeps for `keep_alive_s`."""
    return min(max(keep_alive_s + LEASE_MARGIN_S, MIN_LEASE_S), MAX_LEASE_S)


def is_embedder(facts: ModelFacts | None) -> bool:
    """Return True for a model that only embeds: loaded through /api/embed, with Ollama's default options."""
    return facts is not None and "embedding" in facts.capabilities and "completion" not in facts.capabilities


class Residency:
    """Carries out switches, unloads and renewals on one backend."""

    def __init__(self, world: World, lessons: Lessons, config: Config, telemetry: Telemetry) -> None:
        self.unloading = Unloading(world, config)
        self._conclusions = Conclusions(world, lessons, self.unloading, telemetry)
        self._lessons = lessons
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
        started_s = self._now()
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
        measured = self._cards.measured_since(started_s)
        # Whether Ollama evicted another model during the load; then free memory says nothing about this one.
        present = {weights: other.row for weights, other in self._residents.items() if weights != target.weights}
        await self._load(target)
        loaded_s = self._now()
        await self._world.refresh_fresh()
        tracked = self._residents.get(target.weights)
        if tracked is None:  # observed: Ollama answers the load with 200, and ps lists nothing
            return SwitchResult.TAKEN, "the load returned, but the model is not loaded"
        free_before = {} if target.plan.adopts else {gpu.index: gpu.free_bytes for gpu in before or ()}
        tracked.loaded(target.plan.options, self._lease_s, self._now(), free_before)
        after, has_left = self._cards.measured_since(loaded_s), not present.keys() <= self._residents.keys()
        together_bytes = sum(row.size_vram_bytes for row in (*present.values(), tracked.row))
        has_seen = self._lessons.has_measured
        look = look_at(target.facts, target.plan, tracked.row, measured, after, has_left=has_left, has_seen=has_seen)
        load = Verified(target, tracked, before, after, look, has_left=has_left, together_bytes=together_bytes)
        result, text = await self._conclusions.draw(load)
        if result is SwitchResult.DONE:
            self._failures.pop(target.weights, None)
        return result, text

    # --- make room ---------------------------------------------------------------------------------------------

    async def _make_room(self, target: Target) -> bool:
        """Unload the residents that the plan evicts, one by one, and read again; return True if all have gone."""
        await self._world.refresh_fresh()
        settled_s = 0.0
        for weights in target.plan.evict:
            tracked = self._residents.get(weights)
            if tracked is None or not self._world.wanted.get(target.weights):
                continue
            if tracked.in_flight or not await self.unloading.unload(tracked):  # a request is never cut off for a switch
                return False
            settled_s = self._now() + self._settings.settle_s
        if settled_s:  # Ollama updates its figure of free memory late: an earlier load would be placed by the old one
            await asyncio.sleep(max(0.0, settled_s - self._now()))
            await self._world.refresh_fresh()
        while self._cards.is_memory_returning():  # of a model that left ps without our unloading it
            await self.unloading.pause()
        return True

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

    def _name(self, weights: str) -> str:
        tracked = self._residents.get(weights)
        return tracked.name if tracked is not None else weights


def _still_fits(plan: Plan, gpus: tuple[Gpu, ...]) -> bool:
    """Return True if each card of the plan still has the free memory that the plan needs."""
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    return all(free.get(index, 0) >= need for index, need in zip(plan.cards, plan.need_by_card, strict=True))
