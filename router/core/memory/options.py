"""The options of a runner that affect memory, and what llama.cpp derives from them: cells and batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ComputeBackend = Literal["cuda", "vulkan", "rocm", "plain"]


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """The options of a runner that affect memory. `num_ctx` is per slot.

    `is_embedding` None: derived from the capabilities (no completion), as Ollama does. `has_projector` False: the
    vision tower stays in main memory. `has_draft` None: derived from the Modelfile, as Ollama does.
    """

    num_ctx: int
    num_batch: int = 512
    num_parallel: int = 1
    kv_type: str = "f16"
    flash_attention: bool = True
    is_embedding: bool | None = None
    has_projector: bool = True
    has_draft: bool | None = None

    def with_num_ctx(self, num_ctx: int) -> MemoryOptions:
        """Return the same options with another context."""
        return replace(self, num_ctx=num_ctx)

    @property
    def cells(self) -> int:
        """KV cells per slot: the context, padded twice as llama-context.cpp does."""
        return pad(pad(self.num_ctx * self.num_parallel) // self.num_parallel)

    @property
    def ubatch(self) -> int:
        """Tokens computed at once: at most what all slots can hold."""
        return min(self.num_batch, self.cells * self.num_parallel)

    def sliding_cells(self, window: int) -> int:
        """Return the cells per slot of a layer that slides over `window` tokens (llama-kv-cache-iswa.cpp)."""
        return min(self.cells, pad(window + self.ubatch))

    @property
    def is_kv_quantized(self) -> bool:
        """True if the cache holds blocks rather than plain floats."""
        return self.kv_type.lower() not in {"f32", "f16", "bf16"}


def pad(tokens: int, to: int = 256) -> int:
    """Return `tokens` rounded up to a multiple of `to`."""
    return -(-tokens // to) * to
