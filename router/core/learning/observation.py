"""One verified load: what was requested, what the formula predicted, what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from router.core.learning.setup import Setup, key_of
from router.core.memory.options import MemoryOptions
from router.core.units import MIB

MOST_CONTEXT_BYTES = 640 * MIB
"""No driver context takes more; the largest that was measured is 555 MiB."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One load, as `residency` observed it.

    `measured_bytes` is by how much the probe saw free memory drop over all cards of the load; `predicted_bytes` is the
    formula's figure for that (`Placement.expected_bytes`: with driver contexts, without margin and safety).
    `free_before_bytes` is the free memory of the card that had the least. `at_s` is Unix time.

    `size_bytes` and `size_vram_bytes` are those of `/api/ps`: if the load spilled they show how much went to main
    memory. `cache_bytes` is KV and recurrent state by the formula. These three may be 0, unknown. `margin_bytes` is
    llama.cpp's fit target per card, `context_bytes` what the formula assumes for the driver contexts, which are not
    known exactly on every card. `alternatives` are the predictions for other setups of the server, by `setup.key_of`;
    with `is_one_slot` this model has one slot under each. `machine` is the backend's name; "" if it was observed before
    there were several.
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
    is_one_slot: bool = False
    machine: str = ""
    context_bytes: int = 0
    alternatives: dict[str, int] = field(default_factory=dict, compare=False)  # not compared: it follows from the rest

    def under(self, setup: Setup, margin_bytes: int) -> Observation:
        """Return the same load as predicted for a server that is set up so, and keeps `margin_bytes` of a card free."""
        predicted_bytes = self.alternatives.get(key_of(setup))
        if predicted_bytes is None:
            return self
        return replace(
            self,
            num_parallel=1 if self.is_one_slot else setup.num_parallel,
            kv_type=setup.kv_type,
            predicted_bytes=predicted_bytes,
            margin_bytes=margin_bytes,
            alternatives={},
        )

    @property
    def is_conclusive(self) -> bool:
        """True if something was measured, or the load spilled, and there is a prediction to compare it with.

        A load that was tried without any reading of the cards has none: what it took says nothing about the formula.
        """
        return self.predicted_bytes > 0 and (self.spilled or self.measured_bytes > 0)

    @property
    def tokens(self) -> int:
        """The context over all slots."""
        return self.num_ctx * self.num_parallel

    @property
    def residual_bytes(self) -> int:
        """The need beyond the formula, in bytes.

        If the load spilled, its need is what went to the cards and what stayed outside, and at least what the cards had
        beside the margin: otherwise it would not have spilled. A load that took far less than its weights was measured
        wrongly: at most a third less than predicted is believed.
        """
        if not self.spilled:
            return max(self.measured_bytes - self.predicted_bytes, -self.predicted_bytes // 3)
        outside = max(0, self.size_bytes - self.size_vram_bytes)
        had = self.free_before_bytes * max(1, len(self.gpu_names)) - self.margin_bytes
        return max(self.measured_bytes + outside, had) - self.predicted_bytes

    @property
    def shown_residual_bytes(self) -> int | None:
        """The need beyond the formula that was really seen, in bytes; None if a spill does not show it.

        That leaves out the bound by which a spill without a cause in sight is explained (`residual_bytes`).
        """
        if not self.spilled:
            return self.residual_bytes
        return None if self.shown_bytes is None else self.shown_bytes - self.predicted_bytes

    @property
    def shown_bytes(self) -> int | None:
        """What the load took on the cards and beside them, in bytes; None if that was not seen."""
        if not self.measured_bytes or (self.spilled and not self.size_bytes):
            return None
        return self.measured_bytes + (max(0, self.size_bytes - self.size_vram_bytes) if self.spilled else 0)

    @property
    def comparable_bytes(self) -> int | None:
        """The same with the driver contexts that the formula assumes, where `/api/ps` tells the real ones apart.

        It lists what a runner has booked without its contexts. What else it may lack is a buffer of a sliding window,
        which is more than a context where it matters.
        """
        shown, listed = self.shown_bytes, self.size_bytes if self.spilled else self.size_vram_bytes
        if shown is None or not (listed and self.context_bytes):
            return shown
        is_context = 0 <= shown - listed <= MOST_CONTEXT_BYTES * max(1, len(self.gpu_names))
        return listed + self.context_bytes if is_context else shown

    def matches(self, options: MemoryOptions) -> bool:
        """Return whether `options` start the same runner, as far as memory is concerned."""
        return (self.num_ctx, self.num_batch, self.num_parallel, self.kv_type) == (
            options.num_ctx,
            options.num_batch,
            options.num_parallel,
            options.kv_type,
        )


def in_order(observations: Iterable[Observation], now_s: float) -> list[Observation]:
    """Return `observations`, the oldest first, none with a later time than the next one has, or than `now_s`.

    A clock may have been ahead when a load was observed: it would be the newest one, and recent, for years.
    """
    found, latest_s = list[Observation](), now_s
    for one in reversed(tuple(observations)):
        latest_s = min(latest_s, one.at_s)
        found.append(one if one.at_s == latest_s else replace(one, at_s=latest_s))
    return found[::-1]
