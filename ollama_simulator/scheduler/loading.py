"""Loads: checks ahead of the start, starting the runner, waiting for it, Ollama's retries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ollama_simulator.machine.arithmetic import Arithmetic, RunnerSpec, SimModel
from ollama_simulator.machine.cards import Cards
from ollama_simulator.scheduler.runner import OOM, POLL_S, Runner, command_line
from router.core.ollama.bookkeeping import Free
from router.core.ollama.options import (
    EffectiveOptions,
    ServerSettings,
    clamped,
    has_flash_attention,
    next_lower_num_ctx,
)
from router.core.ollama.scheduler import Preflight, preflight
from router.core.units import MIB

Events = Callable[[str, str, str], None]
HEADROOM_BYTES = 1 << 30
"""Memory that Ollama requires in addition to a projector's weights."""

SPAWN_S = 0.02
"""Longest start of a process. It is random, so that races of real processes can end either way here too."""

LOST_LINE = 0.7
"""Probability that the log line of a split runner with the free memory of a further card is lost."""


class EngineError(Exception):
    """A request could not be scheduled; `text` is Ollama's own wording, `status` its HTTP status."""

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


class EngineBusy(EngineError):
    """The queue is full (503)."""


class LoadError(EngineError):
    """The runner did not start (500)."""


class RunnerDied(EngineError):
    """The runner died during an answer; `text` is Ollama's error."""


@dataclass(slots=True, eq=False)
class Request:
    """A request in the scheduler. `served` yields its runner or an EngineError."""

    model: SimModel
    launch: EffectiveOptions
    keep_alive_s: float | None
    served: asyncio.Future[Runner]
    is_cancelled: bool = False
    has_retried: bool = False


class _StartFailed(Exception):
    """A runner failed to become ready."""


class Loader:
    """Starts runners, one at a time."""

    def __init__(
        self, cards: Cards, settings: ServerSettings, arithmetic: Arithmetic, rng: random.Random, emit: Events
    ) -> None:
        self._cards, self._settings, self._arithmetic, self._rng, self._emit = cards, settings, arithmetic, rng, emit
        self._starting: Runner | None = None

    def stop(self) -> None:
        """Kill the runner that is starting, as the server stops."""
        if self._starting is not None:
            self._starting.kill()

    def kill(self, model: SimModel) -> None:
        """Kill `model`'s runner if it is starting now."""
        if self._starting is not None and self._starting.model is model:
            self._starting.kill()

    async def load(self, request: Request, free: Free, loaded: Mapping[str, Runner]) -> Runner | None:
        """Load the model. None: retry after an eviction, or after evicting all if `has_retried` is set.

        Raises LoadError if the load has failed finally.
        """
        model = request.model
        look = preflight(
            model.facts,
            request.launch,
            self._cards.gpus(),
            free,
            self._settings,
            has_residents=bool(loaded),
            blob_bytes=model.blob_bytes,
        )
        request.launch = replace(request.launch, num_batch=look.num_batch)
        if look.evicts:
            return None
        try:
            return await self._started(request, look, free)
        except _StartFailed as failure:
            self._emit("load_failed", model.name, str(failure))
            if self._retries(request, str(failure), has_others=bool(loaded)):
                return None
            raise LoadError(str(failure)) from None

    def _retries(self, request: Request, text: str, *, has_others: bool) -> bool:
        """Prepare Ollama's one retry after an OOM: less of an automatic context, else all others evicted."""
        if request.has_retried or OOM.rpartition(": ")[2] not in text:
            return False
        launch = request.launch
        lower = next_lower_num_ctx(clamped(launch.num_ctx, request.model.facts)) if launch.num_ctx_auto else None
        if lower is not None and lower < launch.num_ctx:
            request.launch = replace(launch, num_ctx=lower)
            request.has_retried = True
        elif has_others:
            request.has_retried = True
        return request.has_retried

    async def _started(self, request: Request, look: Preflight, free: Free) -> Runner:
        """Start a runner. After an OOM, try once more with its projector on the CPU."""
        has_projector = self._offloads_projector(request, look, free)
        try:
            return await self._attempt(request, look, has_projector=has_projector)
        except _StartFailed as failure:
            if not has_projector or OOM not in str(failure):
                raise
        try:
            return await self._attempt(request, look, has_projector=False)
        except _StartFailed as failure:
            prefix = "llama-server startup failed after projector CPU offload retry: "
            raise _StartFailed(f"{prefix}{failure}") from None

    def _offloads_projector(self, request: Request, look: Preflight, free: Free) -> bool:
        needed, launch = request.model.projector_bytes, request.launch
        if not needed or launch.num_gpu == 0:
            return False
        if 0 < launch.num_gpu <= int(request.model.facts.value("block_count", 0)):
            return False
        totals = [gpu.total_bytes for gpu in self._cards.gpus()]
        return all((free[card] or totals[card]) >= needed + HEADROOM_BYTES for card in look.cards)

    async def _attempt(self, request: Request, look: Preflight, *, has_projector: bool) -> Runner:
        launch = replace(request.launch, num_ctx=clamped(request.launch.num_ctx, request.model.facts))
        spec = self._spec(request, launch, look, has_projector=has_projector)
        keep_alive_s = self._settings.keep_alive_s if request.keep_alive_s is None else request.keep_alive_s
        runner = Runner(request.model, launch, spec, look.cards, self._cards, keep_alive_s)
        self._emit("starting", request.model.name, command_line(runner, self._settings))
        begun = asyncio.get_running_loop().time()
        self._starting = runner
        try:
            await asyncio.sleep(self._rng.uniform(0.0, SPAWN_S))
            runner.start(self._arithmetic)
            await self._ready(runner, request)
        except _StartFailed:
            runner.kill()
            raise
        finally:
            self._starting = None
        runner.load_s = asyncio.get_running_loop().time() - begun
        further = len(runner.free_at_load_bytes) - 1
        lost = [self._rng.random() < LOST_LINE for _ in range(further)]
        figures = zip(runner.free_at_load_bytes[1:], lost, strict=True)
        runner.free_at_load_bytes = (
            *runner.free_at_load_bytes[:1],
            *(None if is_lost else figure for figure, is_lost in figures),
        )
        return runner

    def _spec(self, request: Request, launch: EffectiveOptions, look: Preflight, *, has_projector: bool) -> RunnerSpec:
        settings, model = self._settings, request.model
        target = settings.fit_target_bytes
        if has_projector and target == HEADROOM_BYTES:  # a target set by the user is not changed
            target = -(-(model.projector_bytes + HEADROOM_BYTES) // MIB) * MIB
        gpus = self._cards.gpus()
        return RunnerSpec(
            model=model,
            num_ctx=launch.num_ctx,
            num_batch=launch.num_batch,
            num_parallel=launch.num_parallel,
            num_gpu=launch.num_gpu,
            is_single=look.is_single,
            kv_type=settings.kv_type,
            flash_attention=has_flash_attention([gpus[card] for card in look.cards], settings),
            fit=settings.fit,
            has_projector=has_projector,
            target_bytes=target,
        )

    async def _ready(self, runner: Runner, request: Request) -> None:
        """Wait for a runner, polling as Ollama does. Fails if the client leaves or the runner shows no activity."""
        loop = asyncio.get_running_loop()
        while True:
            runner.check()
            if request.is_cancelled:
                raise _StartFailed("timed out waiting for llama-server to start: context canceled")
            if not runner.is_alive:
                raise _StartFailed(f"llama-server process has terminated: {runner.death}")
            if loop.time() > runner.active_at_s + self._settings.load_timeout_s:
                raise _StartFailed("timed out waiting for llama-server to start - ")
            if runner.is_ready:
                return
            await asyncio.sleep(POLL_S)
