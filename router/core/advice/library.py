"""Common models of Ollama's public library, and the memory they need: what to pull if nothing installed fits.

Tags and sizes of ollama.com/library as of November 2026. The memory is that of `router/core/memory` for the metadata of
each model, on one CUDA card with an f16 cache; tests/core/advice/test_library.py computes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from router.core.advice.examine import groups
from router.core.memory.footprint import MemoryOptions, footprint
from router.core.memory.placement import Card
from router.core.ollama.model import ModelFacts
from router.core.ollama.names import key_of
from router.core.ollama.series import series
from router.core.units import GIB, MIB

LEAST_NUM_CTX = 8192
"""The router's own `defaults.min_num_ctx`: it gives a variant less context before it takes a smaller one."""

MAX_PULLS = 3
_STEP = 256
_MARGIN = 1.04  # a file of the library may be a little bigger than the one that was computed
_SPLIT_BYTES = 5 * GIB // 2  # what a further card costs: its context, margin and buffers
_KEPT_FREE_MIB = 1024 + 457  # the fit target and the driver's context, which the table contains
_COMPARED = frozenset({"completion", "tools", "vision"})


@dataclass(frozen=True, slots=True)
class Published:
    """A tag of the library: parameters in billions, MiB needed at contexts of 8192 and 32768, its largest context."""

    name: str
    billions: float
    mib_at_8192: int
    mib_at_32768: int
    context_length: int
    capabilities: str = "completion tools"

    def need_bytes(self, num_ctx: int, num_parallel: int) -> int:
        """Return the memory for `num_parallel` slots of `num_ctx` tokens on one card."""
        mib_per_token = (self.mib_at_32768 - self.mib_at_8192) / (32768 - 8192)
        return int(_MARGIN * MIB * (self.mib_at_8192 + mib_per_token * (num_ctx * num_parallel - 8192)))

    def is_below(self, need_mib: float) -> bool:
        """Return True if it needs clearly less than `need_mib`, a need without what Ollama itself keeps free."""
        return self.mib_at_8192 - _KEPT_FREE_MIB < 0.97 * need_mib


PUBLISHED = (
    Published("qwen2.5:72b", 72.7, 49289, 57070, 32768),
    Published("llama3.3:70b-instruct-q8_0", 70.6, 75427, 83208, 131072),
    Published("llama3.3:70b", 70.6, 44673, 52454, 131072),
    Published("llama3.3:70b-instruct-q3_K_M", 70.6, 36858, 44639, 131072),
    Published("llama3.3:70b-instruct-q2_K", 70.6, 29358, 37140, 131072),
    Published("qwen3:32b-q8_0", 32.8, 36481, 42711, 40960),
    Published("qwen3:32b", 32.8, 22354, 28583, 40960),
    Published("qwen3:30b-a3b-q8_0", 30.5, 33315, 35666, 262144),
    Published("qwen3:30b-a3b", 30.5, 20050, 22401, 262144),
    Published("gemma3:27b", 27.4, 19839, 21802, 131072, "completion vision"),
    Published("mistral-small:24b", 23.6, 16440, 20343, 32768),
    Published("gpt-oss:20b", 20.9, 13951, 14552, 131072),
    Published("qwen3:14b", 14.8, 11191, 15062, 40960),
    Published("gemma3:12b", 12.2, 10650, 12210, 131072, "completion vision"),
    Published("qwen3:8b-q8_0", 8.2, 10535, 14015, 40960),
    Published("qwen3:8b", 8.2, 7321, 10801, 40960),
    Published("llama3.1:8b-instruct-q8_0", 8.0, 10355, 13451, 131072),
    Published("llama3.1:8b", 8.0, 7153, 10249, 131072),
    Published("mistral:7b", 7.2, 6847, 9943, 32768),
    Published("gemma3:4b", 4.3, 5362, 5866, 131072, "completion vision"),
    Published("qwen3:4b", 4.0, 5220, 8700, 40960),
    Published("llama3.2:3b", 3.2, 4498, 7210, 131072),
    Published("qwen3:1.7b", 1.7, 3612, 6324, 40960),
    Published("llama3.2:1b", 1.2, 3186, 3978, 131072),
    Published("qwen3:0.6b", 0.6, 2912, 5624, 40960),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pull:
    """A model to pull that fits fully at `num_ctx`; `is_series`: an automatic chain of the asked model takes it."""

    model: str
    num_ctx: int
    need_bytes: int
    is_series: bool


def pulls(
    asked: ModelFacts, installed: Iterable[ModelFacts], options: MemoryOptions, cards: Sequence[Card]
) -> tuple[Pull, ...]:
    """Return the models of the library, biggest first, that fit `cards` and may stand in for `asked`.

    At least one is of its series, if one fits. An embedding model has no stand-in, because vectors of two models do
    not compare.
    """
    if "embedding" in asked.capabilities:
        return ()
    found = list(_fitting(asked, {key_of(facts.name) for facts in (asked, *installed)}, options, cards))
    chosen = found[:MAX_PULLS]
    of_series = next((pull for pull in found if pull.is_series), None)
    if of_series is not None and of_series not in chosen:
        chosen[-1] = of_series
    return tuple(chosen)


def _fitting(asked: ModelFacts, known: set[str], options: MemoryOptions, cards: Sequence[Card]) -> Iterator[Pull]:
    wanted = asked.capabilities & _COMPARED
    asked_mib = footprint(asked, options.with_num_ctx(LEAST_NUM_CTX)).need_bytes / MIB
    for one in PUBLISHED:
        is_bigger = 0 < 1.01 * asked.parameter_count < one.billions * 1e9
        if is_bigger or not one.is_below(asked_mib) or key_of(one.name) in known:
            continue
        num_ctx = _largest_num_ctx(one, options, cards) if wanted <= set(one.capabilities.split()) else 0
        if num_ctx:
            need_bytes = one.need_bytes(num_ctx, options.num_parallel)
            yield Pull(one.name, num_ctx, need_bytes, series(one.name)[0] == series(asked.name)[0])


def _largest_num_ctx(one: Published, options: MemoryOptions, cards: Sequence[Card]) -> int:
    """Return the context at which it fits: the one in `options` if possible, less down to the least, or 0."""
    num_ctx = min(options.num_ctx, one.context_length)
    while num_ctx > 0:
        if any(_fits(one.need_bytes(num_ctx, options.num_parallel), group) for group in groups(cards)):
            return num_ctx
        num_ctx = num_ctx - _STEP if num_ctx - _STEP >= LEAST_NUM_CTX else 0
    return 0


def _fits(need_bytes: int, group: Sequence[Card]) -> bool:
    return need_bytes + (len(group) - 1) * _SPLIT_BYTES <= sum(card.free_bytes for card in group)
