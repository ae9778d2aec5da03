"""One model on one machine, in bytes per term and per device: what `fit` prints and `advise` starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.core.memory.footprint import ComputeBackend, Footprint, MemoryOptions, footprint, layer_kv_bytes
from router.core.memory.placement import PIPELINE_COPIES, Card, DeviceNeed, Placement, max_num_ctx, place
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts


@dataclass(frozen=True, slots=True)
class DeviceTerms:
    """What one card holds, term by term; with `spare_bytes` (negative if short) the terms add up to what it has."""

    index: int
    layers: int
    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    projector_bytes: int
    context_bytes: int
    margin_bytes: int
    safety_bytes: int
    need_bytes: int
    have_bytes: int

    @property
    def spare_bytes(self) -> int:
        """The bytes that are left on the card; negative if as many are missing."""
        return self.have_bytes - self.need_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether `model` with `options` runs fully on GPUs, on which cards, and with how much context at most.

    If it does not fit, `placement` and `devices` show the attempt that is short by the least.
    """

    model: str
    arch: str
    options: MemoryOptions
    fits: bool
    known: Footprint
    placement: Placement
    devices: tuple[DeviceTerms, ...]
    largest_num_ctx: int

    @property
    def is_split(self) -> bool:
        """True if it takes more than one card."""
        return len(self.devices) > 1


def examine(
    facts: ModelFacts,
    options: MemoryOptions,
    cards: Sequence[Card],
    *,
    backend: ComputeBackend = "cuda",
    largest: bool = True,
) -> Fit:
    """Try each card alone, the tightest first, then all together, as the router does.

    Return the first fit, else the nearest.

    `largest` False skips the search for the largest context (then 0).
    """
    attempts = [(group, place(facts, options, group, backend=backend)) for group in groups(cards)]
    fitting = [attempt for attempt in attempts if attempt[1].fits]
    best = (
        fitting[0] if fitting else min(attempts, key=lambda one: one[1].short_bytes, default=((), Placement(False, ())))
    )
    searched = groups(cards) if largest else []
    return Fit(
        model=facts.name,
        arch=facts.arch,
        options=options,
        fits=best[1].fits,
        known=footprint(facts, options, backend=backend),
        placement=best[1],
        devices=_terms(facts, options, best[0], best[1], backend),
        largest_num_ctx=max((max_num_ctx(facts, options, group, backend=backend) for group in searched), default=0),
    )


def groups(cards: Sequence[Card]) -> list[tuple[Card, ...]]:
    """Return the sets of cards that a model may be placed on: each alone, the tightest first, then all."""
    alone: list[tuple[Card, ...]] = [(card,) for card in sorted(cards, key=lambda card: (card.free_bytes, card.index))]
    return [*alone, tuple(cards)] if len(cards) > 1 else alone


def _terms(
    facts: ModelFacts, options: MemoryOptions, cards: Sequence[Card], placement: Placement, backend: ComputeBackend
) -> tuple[DeviceTerms, ...]:
    whole = footprint(facts, options, backend=backend, copies=1 if len(cards) == 1 else PIPELINE_COPIES)
    found, start = [], 0
    for card, device in zip(cards, placement.devices, strict=True):
        found.append(_device_terms(facts, options, card, device, whole, start))
        start += device.layers
    return tuple(found)


def _device_terms(
    facts: ModelFacts, options: MemoryOptions, card: Card, device: DeviceNeed, whole: Footprint, start: int
) -> DeviceTerms:
    shape = shape_of(facts)
    layers = shape.layers[start : start + device.layers]
    cache = sum(layer_kv_bytes(shape, layer, options) + layer.state_bytes * options.num_parallel for layer in layers)
    cache = cache if shape.layers else min(whole.kv_bytes, device.alloc_bytes)
    compute = whole.compute_bytes if device.layers else 0
    projector = whole.projector_bytes if start == 0 else 0
    return DeviceTerms(
        index=card.index,
        layers=device.layers,
        weights_bytes=device.alloc_bytes - card.context_bytes - cache - compute - projector,
        cache_bytes=cache,
        compute_bytes=compute,
        projector_bytes=projector,
        context_bytes=card.context_bytes,
        margin_bytes=card.margin_bytes,
        safety_bytes=device.need_bytes - device.alloc_bytes - card.margin_bytes,
        need_bytes=device.need_bytes,
        have_bytes=device.have_bytes,
    )
