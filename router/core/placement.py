"""Where a model's layers go: one card, or llama.cpp's split over several, and whether every card keeps its margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.core.catalog import ModelFacts
from router.core.footprint import Backend, RunOptions


@dataclass(frozen=True, slots=True)
class Card:
    """One device as the fit sees it. `free_bytes` is idle driver-free memory, before our runner's own context.

    `margin_bytes` is llama.cpp's fit target (1 GiB since Ollama 0.30); `context_bytes` the driver context that the
    runner's process will take on this card.
    """

    index: int
    free_bytes: int
    context_bytes: int
    margin_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """What one card must hold: `need_bytes` includes context, margin and safety; it fits when need ≤ have."""

    index: int
    need_bytes: int
    have_bytes: int
    layers: int

    @property
    def short_bytes(self) -> int:
        """How much is missing on this card; 0 when it fits."""
        return max(0, self.need_bytes - self.have_bytes)


@dataclass(frozen=True, slots=True)
class Placement:
    """The outcome of the fit over `devices`: `fits` means every layer on a GPU and none overflowing."""

    fits: bool
    devices: tuple[DeviceNeed, ...]

    @property
    def need_bytes(self) -> int:
        return sum(device.need_bytes for device in self.devices)

    @property
    def short_bytes(self) -> int:
        return sum(device.short_bytes for device in self.devices)


def place(
    facts: ModelFacts,
    options: RunOptions,
    cards: Sequence[Card],
    *,
    backend: Backend = "cuda",
    safety_bytes: int | None = None,
    residual_bytes: int = 0,
) -> Placement:
    """llama.cpp's fit of all layers over exactly these `cards` (one card: no split).

    `safety_bytes` None takes the footprint's own; `residual_bytes` is what was learned for this model (spread over
    the cards in proportion to their share).
    """
    raise NotImplementedError


def max_num_ctx(
    facts: ModelFacts, options: RunOptions, cards: Sequence[Card], *, step: int = 256, backend: Backend = "cuda"
) -> int:
    """The largest num_ctx (a multiple of `step`, at most the model's maximum) that fits over `cards`; 0 if none does."""
    raise NotImplementedError
