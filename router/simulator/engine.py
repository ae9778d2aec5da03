"""Ollama's scheduler with its faults, on virtual cards: one queue, one load at a time, evictions, keep-alive.

`Engine` behaves as `scheduler.md` says the real one does. Time is the running loop's, so it runs as well on a
`VirtualTimeLoop`. The HTTP API is `simulator/server.py`; the runner's memory arithmetic is a plug (`arithmetic.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from router.core.capacity import Gpu, RunnerOptions
from router.core.catalog import ModelFacts


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
    """The runner died while it answered; `text` is the end of Ollama's error line."""


@dataclass(frozen=True, slots=True, eq=False)
class SimModel:
    """An installed model as the scheduler knows it: `blob` (``sha256-…``) orders ties, `blob_bytes` is its size."""

    facts: ModelFacts
    blob: str
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """One row of `/api/ps`. `expires_at_s` is loop time (inf = never); about now = marked for unloading."""

    model: SimModel
    size_bytes: int
    size_vram_bytes: int
    context_length: int
    expires_at_s: float


class Lease(AbstractAsyncContextManager["Lease"]):
    """A request's hold on a runner. Released once, on every path; `async with` does it."""

    model: SimModel
    num_ctx: int
    load_duration_s: float
    tokens_per_s: float
    prompt_tokens_per_s: float
    is_fully_on_gpu: bool

    def slot(self) -> AbstractAsyncContextManager[None]:
        """One of the runner's `num_parallel` slots; waits without limit (scheduler.md §2)."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `RunnerDied` when the runner is dead; call it before each token."""
        raise NotImplementedError

    def crash(self, *, out_of_memory: bool = False) -> None:
        """Kill the runner as a failed assertion, or a CUDA OOM, would."""
        raise NotImplementedError

    def release(self) -> None:
        """The request ended, well or not. Idempotent."""
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Engine(AbstractAsyncContextManager["Engine"]):
    """Ollama's scheduler. `async with Engine(cards, settings) as engine` starts and ends its two loops."""

    async def acquire(
        self, model: SimModel, options: RunnerOptions, *, keep_alive_s: float | None = None, embedding: bool = False
    ) -> Lease:
        """Get `model` resident with `options` (request merged over Modelfile; None = automatic).

        `keep_alive_s` None = none sent, inf = for ever. `embedding` = the model has no completion capability.
        Raises EngineBusy or LoadError; cancelling it is the client leaving.
        """
        raise NotImplementedError

    def expire(self, model: SimModel) -> None:
        """`keep_alive: 0` without a prompt: marks the model; returns at once, also for one that is not loaded."""
        raise NotImplementedError

    def ps(self) -> list[LoadedRow]:
        """`/api/ps`, in its order (latest expiry first)."""
        raise NotImplementedError

    def is_loaded(self, model: SimModel) -> bool:
        """Whether `/api/ps` lists it."""
        raise NotImplementedError

    def gpus(self) -> tuple[Gpu, ...]:
        """What the driver says of every card now (virtual NVML)."""
        raise NotImplementedError

    def kill_runner(self, model: SimModel) -> None:
        """SIGKILL from outside: memory is free, `/api/ps` goes on listing it (h07)."""
        raise NotImplementedError


EventSink = Callable[[str, str, str], None]
"""Called with (what, model name, detail): starting, loaded, load_failed, evicting, unloaded, died."""
