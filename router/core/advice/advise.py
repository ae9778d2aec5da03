"""What to do about a model that is too big: cures on this machine, and hardware that needs no cure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from router.core.advice.examine import Fit, examine, groups
from router.core.advice.library import LEAST_NUM_CTX, Pull, pulls
from router.core.decision.chain import auto_chain
from router.core.memory.footprint import MemoryOptions, footprint
from router.core.memory.placement import PIPELINE_COPIES, Card, max_num_ctx, place
from router.core.memory.shape import shape_of
from router.core.ollama.model import ModelFacts
from router.core.units import GIB

LEAST_USEFUL_CTX = 2048
# Bits per weight of llama.cpp's quantizations on a dense decoder, rounded up (llama.cpp, tools/quantize).
BITS = {
    "q8_0": 8.5, "q6_K": 6.6, "q5_K_M": 5.75, "q5_K_S": 5.6, "q4_K_M": 4.95, "q4_K_S": 4.7, "q3_K_L": 4.4,
    "q3_K_M": 4.05, "q3_K_S": 3.7, "q2_K": 3.25,
}  # fmt: skip
CARD_SIZES_GB = (24, 32, 48, 80, 96)
# An idle card has a little less free than its size: the driver reserves memory (docs/memory.md, "Driver context").
_RESERVED_BYTES = GIB // 2
_CONTEXT_BYTES = 457 << 20

Kind = Literal["variant", "context", "cache", "slots", "batch", "quantization", "sibling"]


@dataclass(frozen=True, slots=True)
class Cure:
    """One change that makes the model run fully on the GPU.

    `is_estimate`: its bytes are those of a file not installed here.
    """

    kind: Kind
    text: str
    model: str
    num_ctx: int
    need_bytes: int
    is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """Cards that would run the model fully. `split_cost_bytes` is the memory that splitting it between them adds.

    `num_ctx` is the context in tokens at which they do.
    """

    cards: int
    size_gb: int
    need_bytes: int
    num_ctx: int
    split_cost_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Advice:
    """The result of `advise`.

    `cures` come best first; `hardware` is the smallest single card and the smallest pair that suffice, also with less
    context; `pulls` are models of the public library that fit here; `main_memory_bytes` is what must be free in main
    memory to run the model here anyway, partly on the CPU.
    """

    fit: Fit
    cures: tuple[Cure, ...]
    hardware: tuple[Hardware, ...]
    main_memory_bytes: int
    pulls: tuple[Pull, ...] = ()


def advise(asked: ModelFacts, installed: Iterable[ModelFacts], options: MemoryOptions, cards: Sequence[Card]) -> Advice:
    """Return what to do about `asked` with `options` on `cards`; `installed` is every model on the server."""
    fit = examine(asked, options, cards)
    hardware = tuple(hardware_for(asked, options))
    if fit.fits:
        return Advice(fit, (), hardware, 0)
    others = tuple(installed)
    cures = tuple(_cures(asked, others, options, cards, fit))
    spilled = main_memory_bytes(asked, options, cards)
    return Advice(fit, cures, hardware, spilled, pulls(asked, others, options, cards))


def _cures(
    asked: ModelFacts, installed: tuple[ModelFacts, ...], options: MemoryOptions, cards: Sequence[Card], fit: Fit
) -> Iterator[Cure]:
    """Yield cures by how little they change the answers, as the router itself decides.

    The order: a shorter context, another quantization, other settings, a file to fetch, a smaller model. A context
    below LEAST_NUM_CTX, which the router does not choose by itself, comes after the quantizations.
    """
    same, smaller = _stand_ins(asked, installed)
    shorter = list(_shorter_context(asked, options, cards, fit))
    yield from (cure for cure in shorter if cure.num_ctx >= LEAST_NUM_CTX)
    yield from _first_fitting("variant", "use {model}, which is installed", same, options, cards)
    yield from _other_settings(asked, options, cards)
    yield from (cure for cure in shorter if cure.num_ctx < LEAST_NUM_CTX)
    yield from _file_to_fetch(asked, options, cards)
    yield from _first_fitting("sibling", "use {model}, a smaller member of the series", smaller, options, cards)


def _shorter_context(asked: ModelFacts, options: MemoryOptions, cards: Sequence[Card], fit: Fit) -> Iterator[Cure]:
    if LEAST_USEFUL_CTX <= fit.largest_num_ctx < options.num_ctx:
        shorter = examine(asked, options.with_num_ctx(fit.largest_num_ctx), cards, largest=False)
        text = f"ask for a context of {fit.largest_num_ctx} instead of {options.num_ctx}"
        yield Cure("context", text, asked.name, fit.largest_num_ctx, shorter.placement.need_bytes)


def _stand_ins(asked: ModelFacts, installed: tuple[ModelFacts, ...]) -> tuple[list[ModelFacts], list[ModelFacts]]:
    """Return the installed models of the automatic chain of `asked`: its other quantizations, and smaller members."""
    by_name = {facts.name: facts for facts in installed}
    same = [by_name[one.model] for one in auto_chain(asked, installed, "quantizations").variants[1:]]
    chain = [by_name[one.model] for one in auto_chain(asked, installed).variants[1:]]
    return same, [facts for facts in chain if facts not in same]


def _first_fitting(
    kind: Kind, text: str, candidates: Iterable[ModelFacts], options: MemoryOptions, cards: Sequence[Card]
) -> Iterator[Cure]:
    """Yield the first candidate that fits, with less context than asked for where that is needed."""
    for facts in candidates:
        asked = options.with_num_ctx(min(options.num_ctx, facts.context_length or options.num_ctx))
        found = examine(facts, asked, cards)
        words = text.format(model=facts.name)
        if not found.fits and LEAST_NUM_CTX <= found.largest_num_ctx < asked.num_ctx:
            found = examine(facts, asked.with_num_ctx(found.largest_num_ctx), cards, largest=False)
            words += f", with a context of {found.options.num_ctx}"
        if found.fits:
            yield Cure(kind, words, facts.name, found.options.num_ctx, found.placement.need_bytes)
            return


def _other_settings(asked: ModelFacts, options: MemoryOptions, cards: Sequence[Card]) -> Iterator[Cure]:
    """Yield server settings that help without changing the answers much."""
    changes: list[tuple[Kind, str, MemoryOptions]] = []
    if options.num_parallel > 1:
        changes.append(("slots", "set OLLAMA_NUM_PARALLEL=1", replace(options, num_parallel=1)))
    if options.num_batch > 512:
        changes.append(("batch", "ask for num_batch 512", replace(options, num_batch=512)))
    if not options.is_kv_quantized:
        quantized = replace(options, kv_type="q8_0", flash_attention=True)
        changes.append(("cache", "set OLLAMA_KV_CACHE_TYPE=q8_0 (needs flash attention)", quantized))
    for kind, text, changed in changes:
        found = examine(asked, changed, cards, largest=False)
        if found.fits:
            yield Cure(kind, text, asked.name, options.num_ctx, found.placement.need_bytes)


def _file_to_fetch(asked: ModelFacts, options: MemoryOptions, cards: Sequence[Card]) -> Iterator[Cure]:
    """Yield the biggest smaller quantization that would fit; its size is estimated from bits per weight."""
    weights = footprint(asked, options).weights_bytes
    bits = 8 * weights / asked.parameter_count if asked.parameter_count else 0.0
    for name, of_name in BITS.items():
        if of_name >= 0.97 * bits:
            continue
        saved = int(weights * (1 - of_name / bits))
        for group in groups(cards):
            found = place(asked, options, group, residual_bytes=-saved)
            if found.fits:
                text = f"fetch it as {name}, about {(weights - saved) / GIB:.1f} GiB of weights"
                yield Cure("quantization", text, asked.name, options.num_ctx, found.need_bytes, is_estimate=True)
                return


def hardware_for(facts: ModelFacts, options: MemoryOptions) -> Iterator[Hardware]:
    """Yield the smallest single card, and the smallest pair of cards, that run `facts` fully.

    With the context in `options`; before it a smaller one that does with less context, but at least LEAST_NUM_CTX.
    """
    for count in (1, 2):
        for size_gb in CARD_SIZES_GB:
            cards = [Card(at, size_gb * GIB - _RESERVED_BYTES, _CONTEXT_BYTES) for at in range(count)]
            num_ctx = options.num_ctx
            found = place(facts, options, cards)
            if not found.fits and num_ctx > LEAST_NUM_CTX:
                num_ctx = min(max_num_ctx(facts, options, cards), num_ctx)
                found = place(facts, options.with_num_ctx(num_ctx), cards) if num_ctx >= LEAST_NUM_CTX else found
            if found.fits:
                split = split_cost_bytes(facts, options.with_num_ctx(num_ctx)) if count > 1 else 0
                yield Hardware(count, size_gb, found.need_bytes, num_ctx, split)
            if found.fits and num_ctx == options.num_ctx:
                break


def split_cost_bytes(facts: ModelFacts, options: MemoryOptions) -> int:
    """Return the bytes that a second card costs: its context, margin and compute buffer, and the pipeline's copies."""
    one, pipelined = (footprint(facts, options, copies=copies).compute_bytes for copies in (1, PIPELINE_COPIES))
    return 2 * pipelined - one + _CONTEXT_BYTES + Card(0, 0, 0).margin_bytes


def main_memory_bytes(facts: ModelFacts, options: MemoryOptions, cards: Sequence[Card]) -> int:
    """Return the main memory that the model takes if it runs anyway, in bytes.

    That is what the cards cannot hold, and what never leaves the host.
    """
    known = footprint(facts, options)
    room = sum(max(0, card.free_bytes - card.context_bytes - card.margin_bytes) for card in cards)
    return max(0, known.need_bytes - room) + shape_of(facts).weights.host_bytes
