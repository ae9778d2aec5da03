"""Ollama's scheduler with its faults, on virtual cards: one queue, one load at a time, evictions, keep-alive.

There are two loops. The first takes one request from the queue and handles it to the end, load and evictions included.
The second (`endings.py`) handles ends of requests, timers and unloads, and blocks while it waits for memory to return.
Time is the running loop's, so that the scheduler also runs on a `VirtualTimeLoop`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType

from ollama_simulator.machine.arithmetic import Arithmetic, SimModel
from ollama_simulator.machine.cards import Cards
from ollama_simulator.scheduler.discovery import Discovery
from ollama_simulator.scheduler.endings import Endings
from ollama_simulator.scheduler.lease import Lease
from ollama_simulator.scheduler.listing import LoadedRow, listed
from ollama_simulator.scheduler.loading import (
    EngineBusy,
    EngineError,
    Events,
    Loader,
    LoadError,
    Request,
    RunnerDied,
)
from ollama_simulator.scheduler.runner import Runner
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.options import ServerSettings, automatic_num_ctx, merged, needs_reload
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import max_loaded, victim


class Engine(AbstractAsyncContextManager["Engine"]):
    """Ollama's scheduler. `async with Engine(cards, settings, arithmetic=…) as engine` runs its loops.

    `seed` determines what is random in Ollama (map order, lost log lines). `on_event` is called with
    (what, model name, detail): starting, loaded, load_failed, evicting, unloaded, died.
    """

    def __init__(
        self,
        cards: Cards,
        settings: ServerSettings | None = None,
        *,
        arithmetic: Arithmetic,
        seed: int = 0,
        on_event: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self.cards, self.settings = cards, settings or ServerSettings()
        self.default_num_ctx = automatic_num_ctx(cards.gpus(), self.settings)
        self._emit: Events = on_event or (lambda _kind, _name, _detail: None)
        self._rng = random.Random(seed)
        self._discovery = Discovery(cards, self._rng)
        self._loader = Loader(cards, self.settings, arithmetic, self._rng, self._emit)
        self._loaded: dict[str, Runner] = {}
        self._lock = asyncio.Lock()  # Ollama's loadedMu
        self._pending: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._is_idle = True
        self._endings = Endings(self._loaded, self._lock, self._discovery, self._wake, self._emit)
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Engine:
        loop = asyncio.get_running_loop()
        self._loops = [loop.create_task(self._serve_pending()), loop.create_task(self._endings.serve())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loader.stop()
        for runner in self._loaded.values():
            runner.stop_timer()
            runner.kill()
        self._loaded.clear()

    # ------------------------------------------------------------------ used by the API

    async def acquire(self, model: SimModel, options: LoadOptions, *, keep_alive_s: float | None = None) -> Lease:
        """Load `model` with `options` unless it is loaded so already. Options that are None are automatic.

        `keep_alive_s`: None = the default, inf = indefinitely, 0 = unload at the end of the request. Raises EngineBusy
        or LoadError. Cancelling means that the client has left, which kills a load that it caused.
        """
        launch = merged(model.facts, options, self.settings, self.default_num_ctx)
        request = Request(model, launch, keep_alive_s, asyncio.get_running_loop().create_future())
        async with self._lock:
            runner = self._loaded.get(model.blob)
        if runner is not None and not self._must_reload(runner, request):
            self._grant(runner, request)
        elif len(self._pending) >= self.settings.max_queue + self._is_idle:
            raise EngineBusy("server busy, please try again.  maximum pending requests exceeded", 503)
        else:
            self._pending.append(request)
            self._wake.set()
        try:
            runner = await request.served
        except asyncio.CancelledError:
            request.is_cancelled = True
            if request.served.done() and not request.served.cancelled() and request.served.exception() is None:
                self._endings.finished(request.served.result())
            raise
        return Lease(
            runner,
            request.launch,
            self.cards.machine.speeds,
            self._endings.finished,
            self._endings.mark_all,
            self._emit,
        )

    def expire(self, model: SimModel) -> None:
        """Mark the model for unloading if it is loaded (`keep_alive: 0` without a prompt). Returns at once."""
        runner = self._loaded.get(model.blob)
        if runner is not None:
            runner.expires_at_s = asyncio.get_running_loop().time()
            self._endings.mark(runner)

    def ps(self) -> list[LoadedRow]:
        """Return the rows of `/api/ps`, latest expiry first. A dead runner stays listed until its next request."""
        return listed(self._loaded.values(), asyncio.get_running_loop().time())

    async def read_ps(self) -> list[LoadedRow]:
        """`ps` with Ollama's delay: it waits while a device query holds the scheduler's lock."""
        async with self._lock:
            return self.ps()

    def is_loaded(self, model: SimModel) -> bool:
        """Whether `/api/ps` lists the model."""
        return model.blob in self._loaded

    def residents(self) -> list[OllamaResident]:
        """Return What the scheduler has booked for each loaded model, and the memory it actually holds."""
        cards = range(len(self.cards.machine.cards))
        return [
            replace(runner.resident(), held_bytes=tuple(self.cards.held_bytes(runner.who, card) for card in cards))
            for runner in self._loaded.values()
        ]

    def gpus(self) -> tuple[Gpu, ...]:
        """Every card as the (virtual) driver reports it."""
        return self.cards.gpus()

    def kill_runner(self, model: SimModel) -> None:
        """Kill the runner as SIGKILL from outside would: its memory is freed, `/api/ps` still lists it."""
        runner = self._loaded.get(model.blob)
        if runner is None:
            self._loader.kill(model)
        else:
            runner.kill()
            self._emit("died", model.name, runner.death)

    # ------------------------------------------------------------------ the first loop: one request at a time

    async def _serve_pending(self) -> None:
        while True:
            await self._wake.wait()
            self._drop_stale_unloads()
            if not self._pending:
                self._wake.clear()
                continue
            request = self._pending.popleft()
            self._is_idle = False
            if not request.is_cancelled:
                try:
                    await self._schedule(request)
                except Exception as error:  # a fault of the simulator: reported to the client, the loop continues
                    self._answer(request, error)
            self._is_idle = not self._pending

    def _drop_stale_unloads(self) -> None:
        """Discard unload events that no eviction waits for. As in Ollama, a request may be taken first, at random."""
        while not self._endings.unloads.empty() and (not self._pending or self._rng.random() < 0.5):
            self._endings.unloads.get_nowait()

    async def _schedule(self, request: Request) -> None:
        while True:
            async with self._lock:
                runner, residents = self._loaded.get(request.model.blob), list(self._loaded.values())
            if runner is not None and not self._must_reload(runner, request):
                return self._grant(runner, request)
            if runner is None and len(residents) < max_loaded(len(self.cards.machine.cards), self.settings):
                free = await self._discovery.believed(residents if request.launch.num_gpu else [], request.launch)
                try:
                    loaded = await self._loader.load(request, free, self._loaded)
                except LoadError as error:
                    return self._answer(request, error)
                if loaded is not None:
                    return await self._enter(loaded, request)
                if not residents:
                    continue
                if request.has_retried:
                    await self._evict_all()
                    continue
            out = runner or self._victim()
            if out is not None:
                await self._evict(out)

    async def _enter(self, runner: Runner, request: Request) -> None:
        """Add a loaded runner to `/api/ps`. It is idle at once if its client has left."""
        async with self._lock:
            runner.enter(self._loaded.values())
            self._loaded[runner.model.blob] = runner
        runner.references += 1
        self._emit("loaded", runner.model.name, f"{runner.load_s:.2f} s")
        if request.served.done():
            self._endings.finished(runner)
        else:
            request.served.set_result(runner)

    def _answer(self, request: Request, error: Exception) -> None:
        if not request.served.done():
            request.served.set_exception(error)

    def _victim(self) -> Runner | None:
        if not self._loaded:
            return None
        return self._loaded[victim([runner.resident() for runner in self._loaded.values()]).weights]

    async def _evict(self, runner: Runner) -> None:
        self._emit("evicting", runner.model.name, "")
        self._endings.mark(runner)
        await self._endings.unloads.get()

    async def _evict_all(self) -> None:
        for _ in self._endings.mark_all():
            await self._endings.unloads.get()

    def _must_reload(self, runner: Runner, request: Request) -> bool:
        return not runner.is_alive or needs_reload(request.model.facts, runner.launch, request.launch)

    def _grant(self, runner: Runner, request: Request) -> None:
        if request.served.done():
            return
        runner.references += 1
        runner.stop_timer()
        if request.keep_alive_s is not None:
            runner.keep_alive_s = request.keep_alive_s
        request.served.set_result(runner)


__all__ = ["Engine", "EngineBusy", "EngineError", "Lease", "LoadError", "LoadedRow", "RunnerDied", "SimModel"]
