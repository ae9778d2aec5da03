"""Where a model's layers go: one card, or llama.cpp's split over several, and whether every card keeps its margin.

llama.cpp's fit (common/fit.cpp) in three steps. 1. All layers are distributed in proportion to free memory; if every
card keeps its margin, that is the plan. 2. Otherwise a mixture of experts moves experts to main memory: it does not
fit. 3. A dense model is distributed again, from the last layer to the first, last card first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import msgspec

from router.core.memory.footprint import (
    ComputeBackend,
    Footprint,
    MemoryOptions,
    known_footprint,
    layer_kv_bytes,
    least_safety_of,
)
from router.core.memory.shape import Shape, shape_of
from router.core.ollama.model import ModelFacts

_FEW = 3  # of so few numbers the highest is tried first
PIPELINE_COPIES = 4  # of the graph's inputs per device, if a fully offloaded model is split (ggml-backend.cpp)


class Card(msgspec.Struct, frozen=True):
    """One device as the fit sees it.

    `free_bytes` is what the driver has free before our runner's own context is created.

    `margin_bytes` is llama.cpp's fit target (1 GiB since Ollama 0.30); `context_bytes` the driver context that the
    runner's process will take on this card.
    """

    index: int
    free_bytes: int
    context_bytes: int
    margin_bytes: int = 1 << 30


class DeviceNeed(msgspec.Struct, frozen=True):
    """What one card must hold: `need_bytes` includes context, margin and safety; it fits if need ≤ have.

    `alloc_bytes` is what llama.cpp allocates there, with the driver context: by so much a probe sees free memory drop.
    """

    index: int
    need_bytes: int
    have_bytes: int
    layers: int
    alloc_bytes: int = 0

    @property
    def short_bytes(self) -> int:
        """How many bytes are missing on this card; 0 if it fits."""
        return max(0, self.need_bytes - self.have_bytes)


class Placement(msgspec.Struct, frozen=True):
    """The result of the fit over `devices`; `fits`: every layer is on a GPU and no card overflows."""

    fits: bool
    devices: tuple[DeviceNeed, ...]

    @property
    def need_bytes(self) -> int:
        """The bytes that must be free over all cards."""
        return sum([device.need_bytes for device in self.devices])

    @property
    def expected_bytes(self) -> int:
        """By how much a load should lower the probe's reading: allocations and driver contexts, without margins."""
        return sum(device.alloc_bytes for device in self.devices)

    @property
    def short_bytes(self) -> int:
        """How many bytes are missing over all cards; 0 if every card has what it needs."""
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
    """Return llama.cpp's fit of all layers over exactly these `cards` (one card: no split; none: nothing fits).

    `safety_bytes` is kept free on each card; None = the footprint's own, by each card's share. `residual_bytes` is what
    was learned about this model, distributed over the cards in proportion to what they hold.
    """
    if len(cards) == 1:
        known = known_footprint(facts, options, backend, 1)
        return _on_one(known, len(shape_of(facts).layers) + 1, cards[0], safety_bytes, residual_bytes)
    if not cards:
        return Placement(False, ())
    split = SplitFit.of(
        facts, options, cards, backend=backend, safety_bytes=safety_bytes, residual_bytes=residual_bytes
    )
    return split.placement([card.free_bytes for card in cards])


def _on_one(known: Footprint, layers: int, card: Card, safety_bytes: int | None, residual_bytes: int) -> Placement:
    """Place all layers on one card. Decisions call this for every variant and card, so nothing is computed twice."""
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
    """Return the largest num_ctx (a multiple of `step`, at most the model's own) that fits over `cards`; 0 if none.

    For a model that does not state its context the search ends at 131072.
    """
    low, high = 0, (facts.context_length or 131_072) // step
    while low < high:
        middle = (low + high + 1) // 2
        asked = options.with_num_ctx(middle * step)
        found = place(facts, asked, cards, backend=backend, safety_bytes=safety_bytes, residual_bytes=residual_bytes)
        low, high = (middle, high) if found.fits else (low, middle - 1)
    return low * step


@dataclass(frozen=True, slots=True)
class SplitFit:
    """A fit over several cards, for any free memory on them: that of `cards` has no part in it.

    `sums` are the bytes of the first n layers; layers are the blocks and, last, the output. `single_bytes` is the
    compute buffer while nothing is pipelined. `least_safety` is the safety without `safety_bytes`: bytes and a share.
    """

    cards: Sequence[Card]
    whole: Footprint
    single_bytes: int
    sums: tuple[int, ...]
    safety_bytes: int | None
    residual_bytes: int
    least_safety: tuple[int, float]
    has_experts: bool

    @staticmethod
    def of(
        facts: ModelFacts,
        options: MemoryOptions,
        cards: Sequence[Card],
        *,
        backend: ComputeBackend = "cuda",
        safety_bytes: int | None = None,
        residual_bytes: int = 0,
    ) -> SplitFit:
        """Return the fit of all layers over exactly these cards; the arguments are those of `place`."""
        return SplitFit(
            cards,
            known_footprint(facts, options, backend, PIPELINE_COPIES),
            known_footprint(facts, options, backend, 1).compute_bytes,
            layer_sums(facts, options),
            safety_bytes,
            residual_bytes,
            least_safety_of(facts),
            bool(facts.value("expert_count", 0)),
        )

    def placement(self, free: Sequence[int]) -> Placement:
        """Return llama.cpp's placement if the cards have `free` bytes each."""
        first = self._first_plan(free)
        if first.fits or self.has_experts or self._is_hopeless(first):
            return first
        return self._second_plan(free) or first

    def _first_plan(self, free: Sequence[int]) -> Placement:
        """Distribute the layers by each card's share of the free memory.

        Layer il goes to the first card whose cumulative share exceeds il / layers (llama-model.cpp, load_tensors).
        """
        layers = len(self.sums) - 1
        shares = list(
            accumulate([max(0, have - card.context_bytes) for card, have in zip(self.cards, free, strict=True)])
        )
        total = shares[-1] or 1
        ends = [-(-share * layers // total) for share in shares[:-1]] + [layers]
        starts = [0, *ends[:-1]]
        parts = enumerate(zip(starts, ends, free, strict=True))
        devices = tuple([self._device(at, end, end - start, have) for at, (start, end, have) in parts])
        return Placement(all(device.need_bytes <= device.have_bytes for device in devices), devices)

    def _is_hopeless(self, first: Placement) -> bool:
        """Return whether no other distribution can help: all cards together have too little, even unpipelined."""
        unpipelined = len(self.cards) * (self.whole.compute_bytes - self.single_bytes)
        return first.need_bytes - unpipelined > sum([device.have_bytes for device in first.devices])

    def _second_plan(self, free: Sequence[int]) -> Placement | None:
        """Give each card, last first, the most of the remaining layers. Return None if some are left over.

        Until all are placed nothing is pipelined, so a card is filled as if there were one copy of the inputs. At the
        end later cards may therefore use part of their margin, as llama.cpp allows, but no card may need more than it
        has.
        """
        left, devices = len(self.sums) - 1, list[DeviceNeed]()
        for at in range(len(self.cards) - 1, -1, -1):
            device = self._device(at, left, left, free[at])
            count = left if device.need_bytes <= device.have_bytes else self._most(at, left, free[at])
            device = self._device(at, left, count, free[at])
            spare = self.cards[at].margin_bytes if at else 0
            if count and device.need_bytes - spare > device.have_bytes:
                return None
            devices.append(device)
            left -= count
        return Placement(True, tuple(reversed(devices))) if not left else None

    def _most(self, at: int, left: int, have: int) -> int:
        """Return the most layers before layer `left` that card `at` holds while nothing is pipelined; never all."""
        low, high = 0, self._at_most(at, left, have)
        while low < high:
            middle = (low + high + 1) // 2 if high - low > _FEW else high
            need, _ = self._bytes(at, left, middle, self.single_bytes)
            low, high = (middle, high) if need <= have else (low, middle - 1)
        return low

    def _at_most(self, at: int, left: int, have: int) -> int:
        """Return a bound of the same, close to it: with the least safety."""
        if self.residual_bytes < 0:
            return left - 1
        fixed, _ = self._bytes(at, left, 0, 0)
        model_bytes = have - fixed - self.single_bytes
        return min(left - 1, left - bisect_left(self.sums, self.sums[left] - model_bytes, 0, left))

    def _device(self, at: int, end: int, count: int, have: int) -> DeviceNeed:
        """Return the need of card `at` if it holds the `count` layers before layer `end`."""
        need, alloc = self._bytes(at, end, count, self.whole.compute_bytes)
        return DeviceNeed(self.cards[at].index, need, have, count, alloc)

    def _bytes(self, at: int, end: int, count: int, compute_bytes: int) -> tuple[int, int]:
        """Return what card `at` then needs, and what is allocated of it."""
        card = self.cards[at]
        model_bytes = self.whole.projector_bytes if at == 0 else 0
        if count:
            model_bytes += self.sums[end] - self.sums[end - count] + compute_bytes
        need = model_bytes + self._learned(model_bytes) if self.residual_bytes else model_bytes
        safety = self.safety_bytes
        if safety is None:
            share = int(self.least_safety[1] * need)
            safety = max(self.least_safety[0], share)
        return need + card.context_bytes + card.margin_bytes + safety, model_bytes + card.context_bytes

    def _learned(self, model_bytes: int) -> int:
        """Return this card's share of what was learned, in bytes."""
        everywhere = self.whole.need_bytes + (len(self.cards) - 1) * self.whole.compute_bytes
        return self.residual_bytes * model_bytes // max(1, everywhere)


@lru_cache(maxsize=4096)
def layer_sums(facts: ModelFacts, options: MemoryOptions) -> tuple[int, ...]:
    """Return the bytes of the first n layers, weights and caches, for n = 0 … blocks + 1 (the last is the output)."""
    shape = shape_of(facts)
    if not shape.layers or not facts.tensors:
        return _even_sums(facts, options)
    whole = known_footprint(facts, options, "plain", 1)
    beside = whole.weights_bytes - shape.weights.device_bytes + whole.kv_bytes - _own_kv_bytes(shape, options)
    weights = tuple(size + beside // max(1, len(shape.layers)) for size in shape.weights.block_bytes)
    skipped = (0,) * (len(shape.layers) - len(weights))
    layers = (
        block + layer_kv_bytes(shape, layer, options) + layer.state_bytes * options.num_parallel
        for block, layer in zip(weights + skipped, shape.layers, strict=True)
    )
    return tuple(accumulate((*layers, shape.weights.output_bytes), initial=0))


def _own_kv_bytes(shape: Shape, options: MemoryOptions) -> int:
    return sum(layer_kv_bytes(shape, layer, options) for layer in shape.layers)


def _even_sums(facts: ModelFacts, options: MemoryOptions) -> tuple[int, ...]:
    """Return the same for a model with unknown tensors: equal layers, and an output as large as a tenth of the file."""
    whole = known_footprint(facts, options, "plain", 1)
    blocks = max(1, int(facts.value("block_count", 32)))
    output = whole.weights_bytes // 10
    rest = whole.weights_bytes - output + whole.kv_bytes + whole.state_bytes
    return tuple(accumulate((*(rest // blocks + 1 for _ in range(blocks)), output), initial=0))
