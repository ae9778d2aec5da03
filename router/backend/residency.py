"""A switch: make room (unload, wait) → load → verify → learn.

A switch belongs to the router, never to a client's connection. At most one runs per backend (`Line` starts them). Every
step has a deadline and ends in a `SwitchResult`, so that no switch occupies the card indefinitely.

Each wait has its reason in how Ollama works (docs/ollama.md, "Keep-alive and unload"): its own wait for memory after an
eviction is broken, it spills instead of refusing, and it evicts other models by stale figures. So the router unloads
models itself, one by one, until `/api/ps` no longer lists them and the probe shows their memory as free; gives
Ollama time to notice; and loads with exactly the options of the requests that follow.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from router.adapters.ollama import PsRow
from router.backend.conclusions import Conclusions, Verified
from router.backend.contest import Contest
from router.backend.lessons import Lessons
from router.backend.load_times import LoadTimes
from router.backend.loaded_limit import LoadedLimit
from router.backend.switches import SwitchResult, Target
from router.backend.tracked import Tracked
from router.backend.unloading import Unloading
from router.backend.verification import Placed, look_at
from router.backend.world import World
from router.config import Config
from router.core.decision.switching import Plan
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.runner import Gpu
from router.errors import LoadFailed, ModelNotFound, RouterError, UpstreamTimeout
from router.http.client.response import Relay, UpstreamResponse
from router.telemetry import Telemetry

T = TypeVar("T")

MOST_FAILURES = 256
"""Models whose last load has failed, and is remembered."""

ONLY_EMBEDS = "does not support generate"
"""Ollama's own text for a model that only embeds."""

LEASE_MARGIN_S = 30.0
MIN_LEASE_S, MAX_LEASE_S = 60.0, 3600.0
"""Bounds of the keep_alive sent to Ollama: finite, so that no model stays loaded indefinitely if the router dies."""


def lease_for(keep_alive_s: float) -> float:
    """Return the keep_alive in seconds to send with a load that the router itself keeps for `keep_alive_s`."""
    return min(max(keep_alive_s + LEASE_MARGIN_S, MIN_LEASE_S), MAX_LEASE_S)


def is_embedder(facts: ModelFacts | None) -> bool:
    """Return True for a model that only embeds: loaded through /api/embed, with Ollama's default options."""
    return facts is not None and "embedding" in facts.capabilities and "completion" not in facts.capabilities


@dataclass(frozen=True, slots=True)
class Outset:
    """The state when a switch began: the loop time, the residents, and whether others use the residents to evict."""

    started_s: float
    known: frozenset[Tracked]
    is_shared: bool


@dataclass(frozen=True, slots=True)
class Readings:
    """The state just before a load: the cards, a valid reading of the probe, and the other residents."""

    before: tuple[Gpu, ...] | None
    shown: tuple[Gpu, ...] | None
    present: Mapping[Tracked, PsRow]


class Residency:
    """Carries out switches, unloads and renewals on one backend."""

    def __init__(self, world: World, lessons: Lessons, relay: Relay, config: Config, telemetry: Telemetry) -> None:
        self.contest = Contest(relay, world.residents, config, telemetry)
        is_auto = config.backends[world.name].server.auto
        self.loaded_limit = LoadedLimit(telemetry, world.epoch.advance, is_auto=is_auto)
        self.load_times = LoadTimes()
        self.unloading = Unloading(world, self.load_times, config)
        self._conclusions = Conclusions(world, lessons, self.unloading, telemetry)
        self._lessons = lessons
        self._failures: dict[str, tuple[str, int]] = {}  # text and status: an error would hold all that it came through
        self.why_away = ""  # the error of the last switch that Ollama did not carry out
        self._world = world
        self._residents = world.residents
        self._cards = world.cards
        self._settings = config.switch
        self._lease_s = lease_for(config.defaults.keep_alive_s)
        self._telemetry = telemetry
        self._now = asyncio.get_running_loop().time

    def last_failure(self, weights: str) -> LoadFailed | None:
        """Return Ollama's own error if the last load of `weights` failed, else None."""
        found = self._failures.get(weights)
        return found and LoadFailed(found[0], status=found[1])

    def _note_failure(self, weights: str, error: LoadFailed) -> None:
        """Remember why a load failed."""
        self._failures.pop(weights, None)  # to the end: the first is the oldest
        self._failures[weights] = error.message, error.status
        if len(self._failures) > MOST_FAILURES:
            del self._failures[next(iter(self._failures))]

    # --- the steps of a switch ---------------------------------------------------------------------------------

    async def switch(self, target: Target) -> SwitchResult:
        """Make `target` resident. Never raises a RouterError: a failure is a result and an event."""
        started_s = self._now()
        evicted = tuple(self._name(weights) for weights in target.plan.evict)
        self._telemetry.emit(target.event("started", evicted))
        try:
            result, text = await self._switch(target)
        except LoadFailed as error:
            result, text = SwitchResult.FAILED, error.message
            if self._cards.is_refusal(target.plan, target.weights, text):
                result = SwitchResult.RENUMBERED
            else:
                self._note_failure(target.weights, error)
        except RouterError as error:  # Ollama restarts, for example: the model is not to blame
            result, text = SwitchResult.AWAY, error.message
            self.why_away = text
        self.contest.count(result)
        phase = "finished" if result is SwitchResult.DONE else "failed"
        error_text = text or ("" if result is SwitchResult.DONE else result.value)
        took_s = self._now() - started_s
        target.payer.charge(took_s)
        self._telemetry.emit(target.event(phase, evicted, took_s, error_text))
        return result

    async def _switch(self, target: Target) -> tuple[SwitchResult, str]:
        outset = self._outset(target)
        if self.contest.is_on and not is_embedder(target.facts):
            return await self._load_held(target, outset)
        if not await self.unloading.make_room(target):
            is_ours = any(one.in_flight for one in map(self._residents.get, target.plan.evict) if one is not None)
            result = SwitchResult.MOVED if is_ours else SwitchResult.OVERTAKEN
            return result, "a resident is busy again or could not be unloaded"
        # Making room takes seconds: check again that the plan is still wanted and possible.
        if not self._world.wanted.get(target.weights):
            return SwitchResult.ABANDONED, ""
        if target.weights in self._residents and not target.plan.adopts:
            return SwitchResult.OVERTAKEN, "another client has loaded it meanwhile"
        if (before := self._cards.gpus) is not None and not _still_fits(target.plan, before):
            return self._moved(target, outset), "memory was taken meanwhile"
        readings, asked_s = self._readings(target, outset.started_s), self._now()
        await self._load(target)
        took_s = self._now() - asked_s
        result, text = await self._conclude(await self._look(target, readings), outset)
        if result is SwitchResult.DONE and not target.plan.adopts:
            self.load_times.loaded(target.weights, target.facts.size_bytes, took_s)
        return result, text

    def _outset(self, target: Target) -> Outset:
        evicted = [self._residents[weights] for weights in target.plan.evict if weights in self._residents]
        is_shared = self.contest.is_on or not all(map(self._residents.is_ours, evicted))
        return Outset(self._now(), frozenset(self._residents.values()), is_shared)

    def _moved(self, target: Target, outset: Outset) -> SwitchResult:
        """Return whose doing a change of memory is: another client's load takes it before ps lists its model."""
        if outset.is_shared:
            self.contest.note(is_clear=True)
        others = {one for one in self._residents.values() if one.weights != target.weights}
        is_by_load = outset.is_shared or not outset.known.issuperset(others)
        return SwitchResult.OVERTAKEN if is_by_load else SwitchResult.MOVED

    async def _load_held(self, target: Target, outset: Outset) -> tuple[SwitchResult, str]:
        """Load in a contest: Ollama makes room when it is our turn, and the load lasts until a request uses it."""
        readings = self._readings(target, math.inf)  # others come and go during the load
        held: UpstreamResponse | None = None
        try:
            held = await self._told(target, self.contest.load(target.facts, target.plan.options))
            load = await self._look(target, readings)
            if load is None or load.look.placed is not Placed.FULL:
                held.close()  # or the unload would wait for it
            result, text = await self._conclude(load, outset)
            if load is not None and result is SwitchResult.DONE:
                self.contest.hold(load.tracked, held)
                held = None
            return result, text
        finally:
            if held is not None:
                held.close()

    def _readings(self, target: Target, since_s: float) -> Readings:
        present = {other: other.row for weights, other in self._residents.items() if weights != target.weights}
        return Readings(self._cards.gpus, self._cards.shown_since(since_s), present)

    async def _look(self, target: Target, readings: Readings) -> Verified | None:
        """Look at a load that has returned; None if ps does not list it (observed: Ollama answers it with 200)."""
        loaded_s, plan = self._now(), target.plan
        await self._world.refresh_surely()
        facts = self._world.installed.catalog.get(key_of(target.facts.name), target.facts)  # shown meanwhile
        tracked = self._residents.get(target.weights) or self._residents.get(facts.weights)
        if tracked is None:
            return None
        left = readings.present.keys() - set(self._residents.values())
        has_evicted = any(_is_evicted(one, loaded_s) for one in left)
        shown, has_left, has_strayed = readings.shown, bool(left), False
        are_ours = all(map(self._residents.is_ours, {*readings.present, *self._residents.values()} - {tracked}))
        if readings.before is not None and are_ours and not self.contest.is_on:
            self.loaded_limit.note(len(self._residents), has_left=has_evicted)
        if not (has_left or plan.adopts):
            has_strayed = self._cards.compare_load(plan, tracked.row, shown, self._cards.shown_since(loaded_s))
        measured, after = self._cards.numbered(shown), self._cards.measured_since(loaded_s)  # by the numbers now
        before = measured or readings.before
        free_before = {} if plan.adopts else {gpu.index: gpu.free_bytes for gpu in before or ()}
        tracked.loaded(plan.options, self._lease_s, self._now(), free_before)
        together_bytes = sum(row.size_vram_bytes for row in (*readings.present.values(), tracked.row))
        has_seen = self._lessons.has_measured
        look = look_at(target.facts, plan, tracked.row, measured, after, has_left=has_left, has_seen=has_seen)
        self._cards.note_sight(is_unseen=look.is_unseen)
        return Verified(target, tracked, before, after, look, has_left, has_evicted, together_bytes, has_strayed)

    async def _conclude(self, load: Verified | None, outset: Outset) -> tuple[SwitchResult, str]:
        if load is None:
            self.contest.note(is_clear=outset.is_shared)
            return SwitchResult.TAKEN, "the load returned, but the model is not loaded"
        result, text = await self._conclusions.draw(load)
        if result is SwitchResult.MOVED and not load.has_strayed:  # a wrong number of a card is nobody else's doing
            result = self._moved(load.target, outset)
        if result is SwitchResult.DONE:
            self._failures.pop(load.target.weights, None)
        return result, text

    # --- load, verify, learn -----------------------------------------------------------------------------------

    async def _load(self, target: Target) -> None:
        name, options, embedding = target.facts.name, target.plan.options, is_embedder(target.facts)
        server, lease_s = self._world.server, self._lease_s
        try:
            await self._told(target, server.load(name, options, keep_alive_s=lease_s, embedding=embedding))
        except LoadFailed as error:
            if embedding or ONLY_EMBEDS not in error.message:
                raise
            # Ollama has not shown yet what it can do.
            await self._told(target, server.load(name, options, keep_alive_s=lease_s, embedding=True))

    async def _told(self, target: Target, load: Awaitable[T]) -> T:
        """Await a load. Raises LoadFailed with the status for the clients that wait: 404 not found, 504 too long."""
        try:
            return await load
        except ModelNotFound as error:
            self._world.installed.mark_changed()
            raise LoadFailed(error.message, status=error.status) from error
        except UpstreamTimeout as error:
            text = f"loading {target.facts.name} did not end within {self._settings.load_timeout_s:g} s"
            raise LoadFailed(text, status=error.status) from error

    async def renew(self, tracked: Tracked) -> None:
        """Renew Ollama's lease of a resident by a request without a prompt and with exactly its options."""
        embedding = is_embedder(self._world.installed.by_weights(tracked.weights))
        await self._world.server.load(
            tracked.name, tracked.sent_options, keep_alive_s=tracked.lease_s, embedding=embedding
        )

    async def aclose(self) -> None:
        """Let go of the loads that are held."""
        await self.contest.aclose()

    def _name(self, weights: str) -> str:
        tracked = self._residents.get(weights)
        return tracked.name if tracked is not None else weights


def _is_evicted(gone: Tracked, now_s: float) -> bool:
    """Return True if Ollama has made room itself: we did not unload it, and no lease that we know of has ended."""
    has_lease = gone.options is not None and now_s - gone.idle_since_s < gone.lease_s - LEASE_MARGIN_S
    return not gone.going_until_s and (gone.in_flight > 0 or has_lease)


def _still_fits(plan: Plan, gpus: tuple[Gpu, ...]) -> bool:
    """Return True if each card of the plan still has the free memory that the plan needs."""
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    return all(free.get(index, 0) >= need for index, need in zip(plan.cards, plan.need_by_card, strict=True))
