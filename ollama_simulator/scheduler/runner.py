"""One simulated llama-server process: allocates memory step by step, loads, becomes ready, dies."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from itertools import count

from ollama_simulator.machine.arithmetic import Arithmetic, Buffer, LoadFailure, RunnerPlan, RunnerSpec, SimModel
from ollama_simulator.machine.cards import Cards
from ollama_simulator.machine.cpu import booked_bytes
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.options import EffectiveOptions, ServerSettings
from router.core.ollama.recovery import FreeEntries
from router.core.units import MIB

POLL_S = 0.25
"""Interval at which Ollama checks a starting runner's health."""


OOM = "cudaMalloc failed: out of memory"
_ids = count(1)


class Runner:
    """A process, and the scheduler's state for it.

    `cards` are the cards assigned to it, in the server's numbering; () = none, but then it still creates a context
    on every card. `free_at_load_bytes` is the free memory that it logged, by its own device numbers. `entry` is its
    place in the map of runners.
    """

    def __init__(
        self,
        model: SimModel,
        launch: EffectiveOptions,
        spec: RunnerSpec,
        cards: tuple[int, ...],
        book: Cards,
        keep_alive_s: float,
    ) -> None:
        self.model, self.launch, self.spec, self.cards = model, launch, spec, cards
        self.keep_alive_s = keep_alive_s
        self.expires_at_s: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.references = 0
        self.entry = 0
        self.plan = RunnerPlan((), False, 0, 0)
        self.free_at_load_bytes: tuple[int | None, ...] = ()
        self.slots = asyncio.Semaphore(launch.num_parallel)
        self.load_s = 0.0
        self.is_ready = False
        self.death = ""
        self.who = f"sim-{next(_ids)}"
        self.active_at_s = 0.0
        self._book = book
        self._task: asyncio.Task[None] | None = None

    @property
    def devices(self) -> tuple[int, ...]:
        """Physical cards in the process's own numbering. Without GPU layers: all cards, or only `main_gpu`."""
        if self.cards or self.launch.main_gpu is None or not self._book.machine.cards:
            return self.cards or tuple(range(len(self._book.machine.cards)))
        return (self.launch.main_gpu,)

    @property
    def is_alive(self) -> bool:
        """False once the process has died."""
        return not self.death

    @property
    def size_vram_bytes(self) -> int:
        """The `size_vram` of `/api/ps`."""
        return self._booked[1]

    @property
    def size_bytes(self) -> int:
        """The `size` of `/api/ps`: equal to `size_vram` if every layer is on a GPU."""
        return self._booked[0]

    @property
    def _booked(self) -> tuple[int, int]:
        machine = self._book.machine
        if not machine.cards:
            return booked_bytes(self.spec, has_amx=machine.has_amx)
        on_gpu = sum(self.plan.booked(len(self.devices)))
        return on_gpu + (0 if self.plan.is_full else self.plan.host_bytes), on_gpu

    def resident(self) -> OllamaResident:
        """Return the scheduler's bookkeeping of this runner."""
        return OllamaResident(
            weights=self.model.blob,
            cards=self.cards,
            buffers_bytes=self.plan.booked(len(self.devices)),
            free_at_load_bytes=self.free_at_load_bytes,
            keep_alive_s=self.keep_alive_s,
            is_idle=self.references <= 0,
            entry=self.entry,
        )

    def enter(self, others: Collection[Runner]) -> None:
        """Take the lowest entry of the map of runners that is free beside `others`."""
        self.entry = FreeEntries(other.entry for other in others).take()

    def start(self, arithmetic: Arithmetic) -> None:
        """Begin to load. `is_ready` or `death` is set at the end."""
        self.active_at_s = asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._load(arithmetic))

    def check(self) -> None:
        """Raise an exception of the simulator itself, if there was one. Simulated failures are in `death`."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def stop_timer(self) -> None:
        """Cancel the expiry."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def kill(self, reason: str = "signal: killed") -> None:
        """End the process; its memory is freed after the driver's lag. Idempotent."""
        if self.is_alive:
            self.death = reason
            self._book.drop(self.who)
        if self._task is not None:
            self._task.cancel()

    async def _load(self, arithmetic: Arithmetic) -> None:
        try:
            await self._injected()
            pin, cards = self.launch.main_gpu, len(self._book.machine.cards)
            if pin is not None and cards and not 0 <= pin < cards:
                raise LoadFailure(f"error: invalid value for main_gpu: {pin} (available devices: {cards})")
            for device, card in enumerate(self.devices):
                self._hold(Buffer("context", device, self._book.machine.cards[card].context_mib * MIB, 0))
            free = [self._book.free_bytes(card) for card in self.devices]
            self.free_at_load_bytes = tuple(left // MIB * MIB for left in free)
            self.plan = arithmetic.plan(self.spec, free)
            await self._allocate(self.plan.buffers)
        except LoadFailure as failure:
            self.kill(f"exit status 1: {failure}")
        else:
            self.is_ready = True

    async def _allocate(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            if buffer.kind == "model":
                self._hold(buffer)
        size = self.plan.gpu_weights_bytes + self.plan.cpu_weights_bytes
        left_s = size / MIB / self._book.machine.speeds.load_mib_per_s
        while left_s > 0:  # llama.cpp prints dots, which Ollama counts as activity
            await asyncio.sleep(min(0.5, left_s))
            left_s -= 0.5
            self.active_at_s = asyncio.get_running_loop().time()
        for buffer in buffers:
            if buffer.kind != "model":
                self._hold(buffer)

    def _hold(self, buffer: Buffer) -> None:
        if not self._book.hold(self.who, self.model.name, self.devices[buffer.device], buffer.size_bytes):
            raise LoadFailure(_oom_text(buffer))

    async def _injected(self) -> None:
        """Apply the fault set for this model: "oom" and "corrupt" fail at once, "hang" never becomes ready."""
        faults = self._book.machine.fail_load.items()
        mode = next((mode for part, mode in faults if part in f"{self.model.blob} {self.model.name}"), None)
        if mode == "oom":
            raise LoadFailure(OOM)
        if mode == "corrupt":
            lost = "tensor 'blk.0.attn_q.weight' data is not within the file bounds, model is corrupted or incomplete"
            raise LoadFailure(f"error loading model: {lost}")
        if mode == "hang":
            await asyncio.Event().wait()


def _oom_text(buffer: Buffer) -> str:
    """Return the end of the log as Ollama quotes it."""
    name, size = f"CUDA{buffer.device}", buffer.size_bytes
    if buffer.kind == "model":
        return (
            f"{OOM}\nalloc_tensor_range: failed to allocate {name} buffer of size {size}\n"
            f"error loading model: unable to allocate {name} buffer"
        )
    return (
        f"{OOM}\nggml_gallocr_reserve_n_impl: failed to allocate {name} buffer of size {size}\n"
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
    )


def command_line(runner: Runner, settings: ServerSettings) -> str:
    """Return the runner's command line as in Ollama's log."""
    spec, launch = runner.spec, runner.launch
    words = ["llama-server", "--model", runner.model.name]
    words += ["-c", str(spec.num_ctx * spec.num_parallel), "-np", str(spec.num_parallel)]
    if runner.model.projector_bytes:
        words += ["--mmproj", runner.model.name] + ([] if spec.has_projector else ["--no-mmproj-offload"])
    if settings.kv_type != "f16":
        words += ["--cache-type-k", settings.kv_type, "--cache-type-v", settings.kv_type]
    words += ["--flash-attn", settings.flash_attention if spec.flash_attention else "off"]
    words += ["-b", str(launch.num_batch), "-ub", str(launch.num_batch)]
    words += ["-ngl", str(launch.num_gpu)] if launch.num_gpu >= 0 else []
    words += ["--split-mode", "none", "--main-gpu", "0"] if spec.is_single else []
    return " ".join(words + (["--context-shift", "--keep", "4"] if launch.shift else []))
