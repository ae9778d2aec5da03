"""The interface of a runner's memory arithmetic: what llama-server allocates on its cards, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from router.core.memory.projector import tower_bytes
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts
from router.core.units import MIB

Kind = Literal["context", "model", "kv", "state", "compute", "projector"]


@dataclass(frozen=True, slots=True, eq=False)
class SimModel:
    """An installed model as the scheduler knows it. `blob` (``sha256-…``) breaks ties, `blob_bytes` is the size of its
    file, `tower_bytes` that of its vision tower (None = by the footprint)."""

    facts: ModelFacts
    blob: str
    blob_bytes: int
    tower_bytes: int | None = None

    @property
    def name(self) -> str:
        """The tag."""
        return self.facts.name

    @property
    def projector_bytes(self) -> int:
        """Bytes of the projector that Ollama passes with ``--mmproj``; 0 for a model without vision."""
        if self.tower_bytes is not None:
            return self.tower_bytes
        return tower_bytes(self.facts, shape_of(self.facts).weights) if "vision" in self.facts.capabilities else 0


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """The part of a runner's command line that determines its memory. `num_ctx` is per slot, `num_gpu` −1 = automatic.

    `is_single` = ``--split-mode none``. `has_projector`: the projector is on the GPU. `target_bytes` is what the fit
    leaves free on each card, without the runner's own addition for the projector.
    """

    model: SimModel
    num_ctx: int
    num_batch: int
    num_parallel: int = 1
    num_gpu: int = -1
    is_single: bool = False
    kv_type: str = "f16"
    flash_attention: bool = True
    fit: bool = True
    has_projector: bool = False
    target_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Buffer:
    """One allocation on one of the runner's devices. `logged_bytes` is the size in its log line (0 = no line).
    Of several with the same `kind` and device, Ollama keeps the last."""

    kind: Kind
    device: int
    size_bytes: int
    logged_bytes: int


@dataclass(frozen=True, slots=True)
class RunnerPlan:
    """The memory of a loaded runner, in the order of allocation. `host_bytes` is what Ollama books for the CPU
    (weights, caches, graph); it counts only if not every layer is on a GPU."""

    buffers: tuple[Buffer, ...]
    is_full: bool
    gpu_weights_bytes: int
    cpu_weights_bytes: int
    host_bytes: int = 0

    def booked(self, devices: int) -> tuple[int, ...]:
        """Bytes per device as Ollama reads them from the log: in MiB with two decimals, the last line wins."""
        last = {(b.kind, b.device): b.logged_bytes for b in self.buffers if b.logged_bytes}
        return tuple(
            sum(int(round(size / MIB, 2) * MIB) for (_, device), size in last.items() if device == wanted)
            for wanted in range(devices)
        )


class LoadFailure(Exception):
    """The runner died during the load; the text is the end of its log as Ollama shows it."""


class Arithmetic(Protocol):
    """The memory that a runner allocates."""

    def plan(self, spec: RunnerSpec, free: Sequence[int]) -> RunnerPlan:
        """Return the allocations of `spec` on devices with `free` bytes each, its own contexts already subtracted.

        Raises LoadFailure if the runner refuses.
        """
        ...

    def projector_bytes(self, model: SimModel) -> int:
        """Bytes of the projector, weights and graph. The runner adds them to the first card's target."""
        ...
