"""One verified load: what was asked, what the formula said, what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.memory.options import MemoryOptions


@dataclass(frozen=True, slots=True)
class Observation:
    """One load, as `residency` saw it end.

    `measured_bytes` is what the probe saw go over all cards of the load; `predicted_bytes` the formula's figure for the
    same (`Placement.expected_bytes`: driver contexts included, no margin, no safety). `free_before_bytes` is that of
    the scarcest card. `at_s` is Unix time.

    `size_bytes` and `size_vram_bytes` are `/api/ps`'s: of a load that spilled they tell how much went to main memory.
    `cache_bytes` is KV and recurrent state by the formula, which identifies a hidden KV type or slot count.
    These three may be 0, unknown. `margin_bytes` is llama.cpp's fit target per card.
    """

    weights: str
    num_ctx: int
    num_batch: int
    num_parallel: int
    kv_type: str
    gpu_names: tuple[str, ...]
    ollama_version: str
    measured_bytes: int
    predicted_bytes: int
    spilled: bool
    free_before_bytes: int
    at_s: float
    main_gpu: int | None = None
    size_bytes: int = 0
    size_vram_bytes: int = 0
    cache_bytes: int = 0
    margin_bytes: int = 1 << 30

    @property
    def is_telling(self) -> bool:
        """True when something was measured, or it spilled."""
        return self.spilled or self.measured_bytes > 0

    @property
    def tokens(self) -> int:
        """Context over all slots."""
        return self.num_ctx * self.num_parallel

    @property
    def residual_bytes(self) -> int:
        """Need beyond the formula.

        Of a spilled load the need is what went to the cards and what stayed outside; and it was more than the cards
        had beside the margin, else it would not have spilled. A load that took far less than its weights was not
        measured right: a third less than predicted is the most that is believed.
        """
        if not self.spilled:
            return max(self.measured_bytes - self.predicted_bytes, -self.predicted_bytes // 3)
        outside = max(0, self.size_bytes - self.size_vram_bytes)
        had = self.free_before_bytes * max(1, len(self.gpu_names)) - self.margin_bytes
        return max(self.measured_bytes + outside, had) - self.predicted_bytes

    def asks(self, options: MemoryOptions) -> bool:
        """True when `options` start the same runner, as far as memory goes."""
        return (self.num_ctx, self.num_batch, self.num_parallel, self.kv_type) == (
            options.num_ctx,
            options.num_batch,
            options.num_parallel,
            options.kv_type,
        )
