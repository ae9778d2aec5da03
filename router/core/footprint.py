"""Bytes a variant needs on the GPU: weights, KV cache, recurrent state, compute buffer, projector (vram.md §3, §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router.core.catalog import ModelFacts

Backend = Literal["cuda", "vulkan", "rocm", "plain"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a runner is started, as far as it changes memory. `num_ctx` is per slot."""

    num_ctx: int
    num_batch: int = 512
    num_parallel: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one device with every layer there. `safety_bytes` widens with what the formula does not know.

    `exactness`: "exact" = architecture in the table, tensors known; "general" = general rules only;
    "coarse" = no tensors or no metadata (never optimistic). `notes` says why, for `explain`.
    """

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    projector_bytes: int
    safety_bytes: int
    exactness: Literal["exact", "general", "coarse"]
    notes: tuple[str, ...] = ()

    @property
    def need_bytes(self) -> int:
        """What llama.cpp's fit projects: everything but the safety, the driver context and the fit target."""
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes + self.projector_bytes


def footprint(facts: ModelFacts, options: RunOptions, *, backend: Backend = "cuda", copies: int = 1) -> Footprint:
    """The footprint of `facts` run with `options` on one device; `copies` = 4 when pipelined over several devices."""
    raise NotImplementedError
