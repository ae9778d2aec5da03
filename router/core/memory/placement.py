"""Where a model's layers go: one card, or llama.cpp's split over several, and whether every card keeps its margin.

llama.cpp's fit (common/fit.cpp) in three steps. 1. All layers are dealt out in proportion to free memory; where every
card keeps its margin, that is the plan. 2. A mixture of experts that does not fit so moves experts to main memory: it
does not fit. 3. A dense model is filled again from the last layer to the first, last card first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from router.core.memory.footprint import (
    ComputeBackend,
    Footprint,
    MemoryOptions,
    known_footprint,
    layer_kv_bytes,
    safety_bytes_of,
)
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts

PIPELINE_COPIES = 4  # of the graph's inputs per device, once a fully offloaded model is split (ggml-backend.cpp)


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
    """What one card must hold: `need_bytes` includes context, margin and safety; it fits when need ≤ have.

    `alloc_bytes` is what llama.cpp allocates there, the driver context included: what a probe sees go.
    """

    index: int
    need_bytes: int
    have_bytes: int
    layers: int
    alloc_bytes: int = 0

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
        """What must be free over all cards."""
        return sum(device.need_bytes for device in self.devices)

    @property
    def expected_bytes(self) -> int:
        """What a probe should see go on loading: everything allocated, driver contexts included, no margins."""
        return sum(device.alloc_bytes for device in self.devices)

    @property
    def short_bytes(self) -> int:
        """How much is missing over all cards; 0 where every card has what it needs."""
        return sum(device.short_bytes for device in self.devices)


def place(
    facts: ModelFacts,
    options: MemoryOptions,
    cards: Sequence[Card],
    *,
    backend: ComputeBackend = "cuda",
    safety_bytes: int | None = None,
    residual_bytes: int = 0,
) -> Placement:
    """llama.cpp's fit of all layers over exactly these `cards` (one card: no split; none: nothing fits).

    `safety_bytes` is kept free on each card; None takes the footprint's own, by each card's share. `residual_bytes` is
    what was learned for this model, spread over the cards in proportion to what they hold.
    """
    if len(cards) == 1:
        known = known_footprint(facts, options, backend, 1)
        return _on_one(known, len(shape_of(facts).layers) + 1, cards[0], safety_bytes, residual_bytes)
    if not cards:
        return Placement(False, ())
    split = _Split(
        facts,
        cards,
        known_footprint(facts, options, backend, PIPELINE_COPIES),
        known_footprint(facts, options, backend, 1).compute_bytes,
        _layer_sums(facts, options),
        safety_bytes,
        residual_bytes,
    )
    first = split.first_plan()
    if first.fits or facts.value("expert_count", 0) or split.is_hopeless(first):
        return first
    return split.second_plan() or first


def _on_one(known: Footprint, layers: int, card: Card, safety_bytes: int | None, residual_bytes: int) -> Placement:
    """All layers on one card: decisions ask this for every variant and card, so it does nothing twice."""
    alloc = known.need_bytes + card.context_bytes
    safety = known.safety_bytes if safety_bytes is None else safety_bytes
    need = alloc + card.margin_bytes + safety + residual_bytes
    return Placement(need <= card.free_bytes, (DeviceNeed(card.index, need, card.free_bytes, layers, alloc),))


def max_num_ctx(
    facts: ModelFacts,
    options: MemoryOptions,
    cards: Sequence[Card],
    *,
    step: int = 256,
    backend: ComputeBackend = "cuda",
    safety_bytes: int | None = None,
    residual_bytes: int = 0,
) -> int:
    """The largest num_ctx (a multiple of `step`, at most the model's own) that fits over `cards`; 0 if none does.

    A model that does not say its context is searched up to 131072.
    """
    low, high = 0, (facts.context_length or 131_072) // step
    while low < high:
        middle = (low + high + 1) // 2
        asked = options.with_num_ctx(middle * step)
        found = place(facts, asked, cards, backend=backend, safety_bytes=safety_bytes, residual_bytes=residual_bytes)
        low, high = (middle, high) if found.fits else (low, middle - 1)
    return low * step


@dataclass(frozen=True, slots=True)
class _Split:
    """One question to the fit over several cards. `sums` are the bytes of the first n layers; layers are the blocks
    and, last, the output. `single_bytes` is the compute buffer while nothing is pipelined."""

    facts: ModelFacts
    cards: Sequence[Card]
    whole: Footprint
    single_bytes: int
    sums: tuple[int, ...]
    safety_bytes: int | None
    residual_bytes: int

    def first_plan(self) -> Placement:
        """Layers by each card's share of the free memory: layer il goes to the first card whose cumulated share
        exceeds il / layers (llama-model.cpp, load_tensors)."""
        layers = len(self.sums) - 1
        shares = list(accumulate(max(0, card.free_bytes - card.context_bytes) for card in self.cards))
        total = shares[-1] or 1
        ends = [-(-share * layers // total) for share in shares[:-1]] + [layers]
        starts = [0, *ends[:-1]]
        parts = enumerate(zip(starts, ends, strict=True))
        devices = tuple(self._device(at, end, end - start) for at, (start, end) in parts)
        return Placement(all(device.need_bytes <= device.have_bytes for device in devices), devices)

    def is_hopeless(self, first: Placement) -> bool:
        """True when no other distribution can help: all cards together have too little, even unpipelined."""
        unpipelined = len(self.cards) * (self.whole.compute_bytes - self.single_bytes)
        return first.need_bytes - unpipelined > sum(device.have_bytes for device in first.devices)

    def second_plan(self) -> Placement | None:
        """Each card, last first, takes the most of the remaining layers; None if some are left over.

        Until all are placed nothing is pipelined, so a card is filled as if there were one copy of the inputs. In the
        end later cards may so dip into their margin, as llama.cpp lets them, but nothing may exceed what a card has.
        """
        left, devices = len(self.sums) - 1, list[DeviceNeed]()
        for at in range(len(self.cards) - 1, -1, -1):
            device = self._device(at, left, left)
            count = left if device.need_bytes <= device.have_bytes else self._most(at, left)
            device = self._device(at, left, count)
            spare = self.cards[at].margin_bytes if at else 0
            if count and device.need_bytes - spare > device.have_bytes:
                return None
            devices.append(device)
            left -= count
        return Placement(True, tuple(reversed(devices))) if not left else None

    def _most(self, at: int, left: int) -> int:
        """The most layers before layer `left` that card `at` holds while nothing is pipelined; never all of them."""
        low, high = 0, left - 1
        while low < high:
            middle = (low + high + 1) // 2
            device = self._device(at, left, middle, self.single_bytes)
            low, high = (middle, high) if device.need_bytes <= device.have_bytes else (low, middle - 1)
        return low

    def _device(self, at: int, end: int, count: int, compute_bytes: int | None = None) -> DeviceNeed:
        """Card `at` holding the `count` layers before layer `end`."""
        card = self.cards[at]
        held = self.whole.projector_bytes if at == 0 else 0
        if count:
            compute = self.whole.compute_bytes if compute_bytes is None else compute_bytes
            held += self.sums[end] - self.sums[end - count] + compute
        need = held + self._learned(held) if self.residual_bytes else held
        safety = safety_bytes_of(self.facts, need) if self.safety_bytes is None else self.safety_bytes
        total = need + card.context_bytes + card.margin_bytes + safety
        return DeviceNeed(card.index, total, card.free_bytes, count, held + card.context_bytes)

    def _learned(self, held_bytes: int) -> int:
        """This card's share of what was learned."""
        everywhere = self.whole.need_bytes + (len(self.cards) - 1) * self.whole.compute_bytes
        return self.residual_bytes * held_bytes // max(1, everywhere)


@lru_cache(maxsize=4096)
def _layer_sums(facts: ModelFacts, options: MemoryOptions) -> tuple[int, ...]:
    """Bytes of the first n layers, weights and caches, for n = 0 … blocks + 1 (the output is the last layer)."""
    shape = shape_of(facts)
    if not shape.layers or not facts.tensors:
        return _even_sums(facts, options)
    weights = shape.weights.block_bytes
    skipped = (0,) * (len(shape.layers) - len(weights))
    layers = (
        held + layer_kv_bytes(shape, layer, options) + layer.state_bytes * options.num_parallel
        for held, layer in zip(weights + skipped, shape.layers, strict=True)
    )
    return tuple(accumulate((*layers, shape.weights.output_bytes), initial=0))


def _even_sums(facts: ModelFacts, options: MemoryOptions) -> tuple[int, ...]:
    """Layers of a model whose tensors are not known: all alike, and the output as large as a tenth of the file."""
    whole = known_footprint(facts, options, "plain", 1)
    blocks = max(1, int(facts.value("block_count", 32)))
    output = whole.weights_bytes // 10
    rest = whole.weights_bytes - output + whole.kv_bytes + whole.state_bytes
    return tuple(accumulate((*(rest // blocks + 1 for _ in range(blocks)), output), initial=0))
