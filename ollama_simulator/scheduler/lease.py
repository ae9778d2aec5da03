"""A request's use of a runner, from the grant to the end of the request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType

from ollama_simulator.machine.arithmetic import SimModel
from ollama_simulator.machine.spec import Speeds
from ollama_simulator.scheduler.loading import Events, RunnerDied
from ollama_simulator.scheduler.runner import Runner
from router.core.ollama.options import EffectiveOptions

PREFIX = "an error was encountered while running the model: "
ASSERTION = "GGML_ASSERT(ggml_can_mul_mat(a, b)) failed"
RUNTIME_OOM = "CUDA error: out of memory"


class Lease(AbstractAsyncContextManager["Lease"]):
    """A request's use of a runner, released by `async with`. `num_ctx` (per slot), `num_batch` and `cards` are those
    with which the runner was started."""

    def __init__(
        self,
        runner: Runner,
        launch: EffectiveOptions,
        speeds: Speeds,
        finished: Callable[[Runner], None],
        out_of_memory: Callable[[], object],
        emit: Events,
    ) -> None:
        self._runner, self._finished, self._out_of_memory, self._emit = runner, finished, out_of_memory, emit
        self._is_released = False
        self.model: SimModel = runner.model
        self.launch = launch
        self.num_ctx, self.num_batch, self.cards = runner.launch.num_ctx, runner.launch.num_batch, runner.cards
        self.load_duration_s = runner.load_s
        self.is_fully_on_gpu = runner.plan.is_full
        plan = runner.plan
        scale = active_share(self.model)
        self.tokens_per_s = speeds.tokens_per_s_of(
            int(plan.gpu_weights_bytes * scale), int(plan.cpu_weights_bytes * scale)
        )
        self.prompt_tokens_per_s = speeds.prompt_tokens_per_s

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Occupy one of the runner's `num_parallel` slots; waits indefinitely."""
        async with self._runner.slots:
            yield

    def check(self) -> None:
        """Raise `RunnerDied` if the runner is dead. Call it ahead of each token."""
        if not self._runner.is_alive:
            known = self._runner.death in (ASSERTION, RUNTIME_OOM)
            raise RunnerDied(PREFIX + (self._runner.death if known else "unexpected EOF"))

    def crash(self, *, out_of_memory: bool = False) -> None:
        """Kill the runner as a failed assertion or a CUDA OOM would."""
        self._runner.kill(RUNTIME_OOM if out_of_memory else ASSERTION)
        self._emit("died", self.model.name, self._runner.death)
        if out_of_memory:
            self._out_of_memory()

    def release(self) -> None:
        """End the use of the runner. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self._finished(self._runner)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def active_share(model: SimModel) -> float:
    """Return the share of the weights that one token reads.

    For a mixture of experts it is a tenth, plus nine tenths of the share of experts used.
    """
    experts, used = int(model.facts.value("expert_count", 0)), int(model.facts.value("expert_used_count", 0))
    return min(1.0, 0.1 + 0.9 * used / experts) if experts and used else 1.0
