"""Past measurements of loads on one backend: in memory for decisions, and in a store across restarts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from router.adapters.ollama import PsRow
from router.adapters.store import LearnedStore
from router.core.decision.need import memory_options
from router.core.decision.switching import Plan
from router.core.learning.observation import Observation, in_order
from router.core.learning.residuals import Ban, Learned
from router.core.learning.setup import key_of, likely_setups, setup_in
from router.core.memory.footprint import MemoryOptions, footprint
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import ServerSettings, parallel_slots, supports_flash_attention
from router.core.ollama.runner import Gpu
from router.errors import RouterError
from router.telemetry import Measured, Notified, Telemetry

MOST_OBSERVATIONS = 5000
"""Loads that are remembered at most, the newest ones; the store keeps as many."""


class Lessons:
    """Past measurements of loads. `learned` is replaced, never modified, so that its identity tells its version.

    `machine` is the backend's name. Unless it `is_alone`, what others have measured does not count: their servers may
    be set up otherwise. `unix_now` must not jump: by it loads are put in order, and grow old.
    """

    def __init__(
        self,
        store: LearnedStore,
        configured: Callable[[], ServerSettings],
        telemetry: Telemetry,
        unix_now: Callable[[], float],
        *,
        is_auto: bool = True,
        machine: str = "",
        is_alone: bool = True,
    ) -> None:
        self.learned = Learned.of(())
        self._is_auto = is_auto
        self._machine, self._is_alone = machine, is_alone
        self._told: object = None
        self._observations: deque[Observation] = deque(maxlen=MOST_OBSERVATIONS)
        self._restarted_s = 0.0
        self._store = store
        self._configured = configured
        self._telemetry = telemetry
        self._unix_now = unix_now
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def has_measured(self) -> bool:
        """True if the probe has seen a load, now or in an earlier run."""
        return any(seen.measured_bytes for seen in self._observations)

    def bans(self) -> list[tuple[Ban, float]]:
        """Return the loads that are not tried again for now because they spilled, each with the seconds left."""
        unix_s = self._unix_now()
        return [(ban, ban.until_s - unix_s) for ban in self.learned.bans(unix_s)]

    def note_restart(self) -> None:
        """Note that Ollama has started: what was less than computed has to be confirmed by a load."""
        self._restarted_s = self._unix_now()
        self._note()

    async def recall(self) -> None:
        """Read the observations of earlier runs from the store."""
        own = (seen for seen in await self._store.all() if self._is_alone or seen.machine in ("", self._machine))
        self._observations = deque(in_order(own, self._unix_now()), MOST_OBSERVATIONS)
        self._note()

    async def forget(self, weights: str | None) -> int:
        """Delete what was learned about these weights, or everything (None); return the number of loads."""
        kept = [seen for seen in self._observations if weights is not None and seen.weights != weights]
        count = len(self._observations) - len(kept)
        self._observations = deque(kept, MOST_OBSERVATIONS)
        self._note()
        await asyncio.gather(*self._writing)  # or a write under way would bring its observation back
        await self._store.forget(weights)
        return count

    def learn(
        self,
        facts: ModelFacts,
        plan: Plan,
        row: PsRow,
        before: tuple[Gpu, ...] | None,
        *,
        taken_bytes: int,
        is_spilled: bool,
    ) -> None:
        """Keep the observation of one verified load.

        `before` are the cards just before the load, `taken_bytes` is the memory that the probe saw it take (0 = not
        seen), `row` its row in ps.
        """
        settings = self.learned.applied_to(self._configured(), self._unix_now())
        asked = memory_options(facts, plan.counted or plan.options, settings)
        cards = [gpu for gpu in before or () if gpu.index in plan.cards]
        observation = Observation(
            weights=facts.weights,
            num_ctx=asked.num_ctx or row.context_length or 0,
            num_batch=asked.num_batch,
            num_parallel=asked.num_parallel,
            kv_type=asked.kv_type,
            gpu_names=tuple(gpu.name for gpu in cards),
            ollama_version=settings.version,
            measured_bytes=taken_bytes,
            predicted_bytes=plan.expected_bytes,
            spilled=is_spilled,
            free_before_bytes=min((gpu.free_bytes for gpu in cards), default=0),
            at_s=self._unix_now(),
            main_gpu=plan.options.main_gpu,
            size_bytes=row.size_bytes,
            size_vram_bytes=row.size_vram_bytes,
            cache_bytes=plan.cache_bytes,
            margin_bytes=settings.fit_target_bytes,
            is_one_slot=_has_one_slot(facts),
            machine=self._machine,
            context_bytes=sum(gpu.context_bytes for gpu in cards),
            alternatives=_alternatives(facts, asked, plan.expected_bytes, settings, cards),
        )
        if taken_bytes and not is_spilled and observation.predicted_bytes:
            self._telemetry.emit(Measured(facts.name, observation.predicted_bytes, taken_bytes))
        self._observations.append(observation)
        self._note()
        self._write(observation)

    def _note(self) -> None:
        """Learn from all observations; report what they show of the server, when that has changed."""
        self.learned = Learned.of(self._observations, self._restarted_s, self._configured(), is_auto=self._is_auto)
        server = self.learned.server
        shown = None if server is None else (server.setup, server.margin_bytes)
        if shown == self._told:
            return
        self._told = shown
        text = self.learned.server_note() or "loads show the server as it is configured again"
        self._telemetry.emit(Notified(text, level="warning" if server is not None else "info"))

    def _write(self, observation: Observation) -> None:
        """Store the observation in the background, so that a slow disk does not delay a switch."""
        task = asyncio.create_task(self._put(observation))
        self._writing.add(task)  # the loop keeps no strong reference to a task
        task.add_done_callback(self._writing.discard)

    async def _put(self, observation: Observation) -> None:
        with suppress(RouterError):
            await self._store.put(observation)


def _has_one_slot(facts: ModelFacts) -> bool:
    return parallel_slots(facts, ServerSettings(num_parallel=2)) == 1


def _alternatives(
    facts: ModelFacts, asked: MemoryOptions, predicted_bytes: int, settings: ServerSettings, cards: Sequence[Gpu]
) -> dict[str, int]:
    """Return the prediction for each likely setup of the server, by its key; {} if nothing was predicted."""
    if not (predicted_bytes and asked.num_ctx):
        return {}
    can = settings.flash_attention != "auto" or supports_flash_attention(cards)
    base = footprint(facts, replace(asked, flash_attention=asked.flash_attention and can)).need_bytes
    is_one_slot, predicted = _has_one_slot(facts), {}
    for setup in likely_setups(setup_in(settings)):
        slots, flash = 1 if is_one_slot else setup.num_parallel, setup.flash_attention and can
        other = replace(asked, num_parallel=slots, kv_type=setup.kv_type, flash_attention=flash)
        predicted[key_of(setup)] = predicted_bytes + footprint(facts, other).need_bytes - base
    return predicted
