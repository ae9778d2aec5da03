"""Memory a model needs with given options, on one card or split, corrected by past measurements.

The need on a single card does not depend on its free memory, so it is computed once for all cards of a kind. A plan
over many cards and many sets of victims then costs only comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from router.core.learning.residuals import Learned
from router.core.memory.fit_target import FIT_SINCE, fit_target_bytes, version_of
from router.core.memory.footprint import ComputeBackend, Footprint, MemoryOptions, known_footprint
from router.core.memory.placement import Card, DeviceNeed, Placement, SplitFit, place
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import (
    DEFAULT_BATCH,
    EMBEDDING_BATCH,
    EffectiveOptions,
    ServerSettings,
    can_complete,
    has_draft,
    has_flash_attention,
    merged,
    parallel_slots,
)
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import Asked, least_free_bytes
from router.core.units import MIB

DEFAULT_SETTINGS = ServerSettings()
NOTHING_LEARNED = Learned.of(())
OLD_SAFETY_BYTES, OLD_SAFETY_PERCENT = 512 * MIB, 8  # at least, before llama.cpp's fit decided


@dataclass(frozen=True, slots=True, eq=False)
class MachineRules:
    """What is known about the server and its cards besides the snapshot.

    `now_s` is Unix time, for the age of measurements.

    Compared and hashed by identity, so it can be a cache key.
    """

    settings: ServerSettings = DEFAULT_SETTINGS
    backend: ComputeBackend = "cuda"
    safety_bytes: int | None = None
    learned: Learned = NOTHING_LEARNED
    step: int = 2048
    now_s: float = 0.0


def memory_options(facts: ModelFacts, options: LoadOptions, settings: ServerSettings) -> MemoryOptions:
    """Return the options that affect memory, of a runner that Ollama starts with `options`; num_ctx must be named.

    Flash attention is that of cards which support it.
    """
    num_ctx = options.num_ctx or 0
    batch = DEFAULT_BATCH if can_complete(facts) else min(EMBEDDING_BATCH, num_ctx)
    return MemoryOptions(
        num_ctx=num_ctx,
        num_batch=options.num_batch or batch,
        num_parallel=parallel_slots(facts, settings),
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention != "off",
        has_draft=has_draft(facts, options.draft_num_predict),
    )


@lru_cache(maxsize=512)
def need_of(facts: ModelFacts, options: LoadOptions, rules: MachineRules) -> MemoryNeed:
    """Return the need of `facts` with `options`, cached for as long as `rules` is the same object."""
    return MemoryNeed(facts, options, rules)


class MemoryNeed:
    """The memory that one model needs with given options; made by `need_of`."""

    __slots__ = (
        "_asked_of", "_facts", "_launches", "_least_believed", "_margin_bytes", "_options", "_rules",
        "_singles", "_splits", "asked", "footprint",
    )  # fmt: skip

    def __init__(self, facts: ModelFacts, options: LoadOptions, rules: MachineRules) -> None:
        self.asked = memory_options(facts, options, rules.settings)
        self.footprint: Footprint = known_footprint(facts, self.asked, rules.backend, 1)
        self._facts = facts
        self._options = options
        self._rules = rules
        self._launches: dict[int | None, EffectiveOptions] = {}
        self._asked_of: dict[int | None, tuple[Asked, Asked]] = {}
        self._least_believed: int | None = None
        settings = rules.settings
        self._margin_bytes = fit_target_bytes(facts, settings.version, base_bytes=settings.fit_target_bytes)
        self._singles: dict[tuple[int, str, str], Placement] = {}
        self._splits: dict[tuple[tuple[int, int, str, str], ...], SplitFit] = {}

    @property
    def cache_bytes(self) -> int:
        """KV cache and recurrent state by the formula: what a hidden KV type or slot count multiplies."""
        return self.footprint.kv_bytes + self.footprint.state_bytes

    def launch(self, main_gpu: int | None = None) -> EffectiveOptions:
        """Return what Ollama makes of the options, with the load pinned to a card or not."""
        found = self._launches.get(main_gpu)
        if found is None:
            options = self._options.at(self._options.num_ctx, main_gpu)
            found = self._launches[main_gpu] = merged(self._facts, options, self._rules.settings, 0)  # num_ctx is named
        return found

    def asked_of(self, main_gpu: int | None = None) -> tuple[Asked, Asked]:
        """Return what Ollama is asked for, with the most that it may predict and with the least.

        It predicts by the weights' file alone: all parts together are more, all of the model's tensors are less.
        """
        found = self._asked_of.get(main_gpu)
        if found is None:
            launch, settings = self.launch(main_gpu), self._rules.settings
            least_bytes = shape_of(self._facts).weights.file_bytes or None
            most = Asked.of(self._facts, launch, settings)
            least = Asked.of(self._facts, launch, settings, blob_bytes=least_bytes)
            found = self._asked_of[main_gpu] = most, least
        return found

    @property
    def least_believed_bytes(self) -> int:
        """The bytes that must seem free to Ollama beside a resident, or it would evict."""
        if self._least_believed is None:
            self._least_believed = least_free_bytes(self._facts, self.launch())
        return self._least_believed

    def need_bytes(self, gpu: Gpu) -> int:
        """Return the bytes that must be free on `gpu` for the whole model: with driver context, margin and safety."""
        return self._single(gpu).devices[0].need_bytes

    def on(self, group: Sequence[Gpu]) -> Placement:
        """Return the placement over exactly `group`, with each card's free memory."""
        if len(group) != 1:
            return self._place(group)
        gpu = group[0]
        device = self._single(gpu).devices[0]
        here = DeviceNeed(gpu.index, device.need_bytes, gpu.free_bytes, device.layers, device.alloc_bytes)
        return Placement(device.need_bytes <= gpu.free_bytes, (here,))

    def split_over(self, gpus: Sequence[Gpu]) -> SplitFit:
        """Return the fit over all of `gpus`, for any free memory on them."""
        kinds = tuple([(gpu.index, gpu.context_bytes, gpu.name, gpu.compute) for gpu in gpus])
        found = self._splits.get(kinds)
        if found is None:
            asked, safety, residual = self._terms(gpus)
            cards, backend = self._cards(gpus), self._rules.backend
            found = self._splits[kinds] = SplitFit.of(
                self._facts, asked, cards, backend=backend, safety_bytes=safety, residual_bytes=residual
            )
        return found

    def _cards(self, gpus: Sequence[Gpu]) -> list[Card]:
        return [Card(gpu.index, gpu.free_bytes, gpu.context_bytes, self._margin_bytes) for gpu in gpus]

    def _single(self, gpu: Gpu) -> Placement:
        kind = (gpu.context_bytes, gpu.name, gpu.compute)
        found = self._singles.get(kind)
        if found is None:
            found = self._singles[kind] = self._place((gpu,))
        return found

    def _place(self, group: Sequence[Gpu]) -> Placement:
        asked, safety, residual = self._terms(group)
        cards, backend = self._cards(group), self._rules.backend
        return place(self._facts, asked, cards, backend=backend, safety_bytes=safety, residual_bytes=residual)

    def _terms(self, group: Sequence[Gpu]) -> tuple[MemoryOptions, int | None, int]:
        """Return options, safety and correction on cards like these, whatever is free on them."""
        rules = self._rules
        residual, learned_safety, _ = rules.learned.residual_bytes(
            self._facts.weights,
            self.asked,
            tuple(gpu.name for gpu in group),
            rules.settings.version,
            now_s=rules.now_s,
        )
        configured, asked = rules.safety_bytes, self.asked
        if asked.flash_attention and not has_flash_attention(group, rules.settings):
            asked = replace(asked, flash_attention=False)
        # Layers are shared out otherwise on cards with other free memory: one split makes the next no safer.
        safety = configured if configured is not None or len(group) > 1 else learned_safety
        return asked, self._old_safety_bytes(len(group)) if safety is None else safety, residual

    def _old_safety_bytes(self, cards: int) -> int | None:
        """Return the safety per card for an engine whose sizes are not those of llama.cpp; None = the footprint's own.

        Ollama's own engine takes more than computed for some models (docs/memory.md, "Older versions"). The first load
        of a model shows how much.
        """
        if version_of(self._rules.settings.version) >= FIT_SINCE:
            return None
        known = self.footprint
        return max(known.safety_bytes, OLD_SAFETY_BYTES, known.need_bytes * OLD_SAFETY_PERCENT // 100 // cards)
