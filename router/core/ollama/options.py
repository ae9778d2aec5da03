"""Options as Ollama merges them, and which differences reload a runner.

See docs/ollama.md, "Arrival and reload" and "Default context".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.units import GIB

DEFAULT_BATCH = 512
LARGEST_BATCH = 2048
"""The largest num_batch that Ollama chooses by itself."""

EMBEDDING_BATCH = 2048
DRAFT_TOKENS = 4
"""The default of draft_num_predict, which only a model with a DRAFT gets (server/routes.go)."""

TIERS = ((47 * GIB, 262144), (23 * GIB, 32768), (0, 4096))
"""(least Σ total memory, automatic num_ctx)."""

ONE_SLOT_FAMILIES = frozenset(
    (
        *("mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe"),
        *("nemotron_h", "nemotron_h_moe", "nemotron_h_omni"),
    )
)
"""Families that Ollama never runs with more than one slot."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the environment of an Ollama server sets (`OLLAMA_*`, `LLAMA_ARG_*`); the defaults are Ollama's own.

    `context_length` None = by VRAM tier. `max_loaded_models` 0 = three per card. `fit` False: all layers or an error.
    `keep_alive_s` and `load_timeout_s` inf = no limit.
    """

    num_parallel: int = 1
    kv_type: str = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    context_length: int | None = None
    gpu_overhead_bytes: int = 0
    sched_spread: bool = False
    max_loaded_models: int = 0
    fit: bool = True
    fit_target_bytes: int = GIB
    keep_alive_s: float = 300.0
    load_timeout_s: float = 300.0
    max_queue: int = 512
    version: str = "0.33.0"


@dataclass(frozen=True, slots=True)
class EffectiveOptions:
    """The options of one request merged with Modelfile, environment and defaults: a runner is started with these.

    `num_ctx` is per slot and not yet clamped to the model's maximum. `num_gpu` −1 = automatic.
    """

    num_ctx: int
    num_ctx_auto: bool
    num_batch: int
    num_batch_auto: bool
    num_parallel: int = 1
    num_gpu: int = -1
    main_gpu: int | None = None
    num_thread: int = 0
    use_mmap: bool | None = None
    draft_num_predict: int = 0
    shift: bool = True


def automatic_num_ctx(gpus: Iterable[Gpu], settings: ServerSettings) -> int:
    """Return the default context of a server on these cards, by their total (not free) memory less the overheads."""
    total = sum(gpu.total_bytes - settings.gpu_overhead_bytes for gpu in gpus)
    return next((num_ctx for least, num_ctx in TIERS if total >= least), TIERS[-1][1])


def next_lower_num_ctx(num_ctx: int) -> int | None:
    """Return the context of Ollama's one retry after a load of automatic context ran out of memory; None = no retry."""
    if num_ctx > 32768:
        return 32768
    return 4096 if num_ctx > 4096 else None


def parallel_slots(facts: ModelFacts, settings: ServerSettings) -> int:
    """Return the slots of a runner: OLLAMA_NUM_PARALLEL, but 1 for models without completion and for some families."""
    if not can_complete(facts) or facts.family in ONE_SLOT_FAMILIES:
        return 1
    return max(settings.num_parallel, 1)


def can_complete(facts: ModelFacts) -> bool:
    """Return whether the model generates text; True if the server lists no capabilities."""
    return "completion" in facts.capabilities or not facts.capabilities


def has_draft(facts: ModelFacts, draft_num_predict: int | None = None) -> bool:
    """Return whether a runner drafts tokens: with a draft model, or with the model's own blocks if it is told to."""
    named = _known(facts.parameters).get("draft_num_predict") if draft_num_predict is None else draft_num_predict
    return bool(named > 0 if named is not None else facts.has_draft)


def clamped(num_ctx: int, facts: ModelFacts) -> int:
    """Return `num_ctx`, at most the context that the model was trained with (if it is known)."""
    trained = facts.context_length
    return min(num_ctx, trained) if trained > 0 else num_ctx


def merged(facts: ModelFacts, options: LoadOptions, settings: ServerSettings, default_num_ctx: int) -> EffectiveOptions:
    """Return what Ollama makes of `options`: request over Modelfile over environment over default.

    `default_num_ctx` is the server's tier (`automatic_num_ctx`).
    """
    named = {**_known(facts.parameters), **_sent(options)}
    num_ctx = int(named.get("num_ctx", settings.context_length or default_num_ctx))
    num_ctx = max(num_ctx, 2048 if "vision" in facts.capabilities else 4)
    is_embedding = "embedding" in facts.capabilities
    default_batch = min(EMBEDDING_BATCH, num_ctx) if is_embedding else DEFAULT_BATCH
    shift = named.get("shift")
    return EffectiveOptions(
        num_ctx=num_ctx,
        num_ctx_auto="num_ctx" not in named and not settings.context_length,
        num_batch=int(named.get("num_batch", default_batch)),
        num_batch_auto="num_batch" not in named and not is_embedding,
        num_parallel=parallel_slots(facts, settings),
        num_gpu=int(named.get("num_gpu", -1)),
        main_gpu=named.get("main_gpu"),
        num_thread=int(named.get("num_thread", 0)),
        use_mmap=named.get("use_mmap"),
        draft_num_predict=int(named.get("draft_num_predict", DRAFT_TOKENS if facts.has_draft else 0)),
        shift=facts.family != "deepseek2" if shift is None else bool(shift),
    )


def _sent(options: LoadOptions) -> dict[str, Any]:
    values = {key: getattr(options, key) for key in LoadOptions.__struct_fields__}
    return {key: value for key, value in values.items() if value is not None}


def _known(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Modelfile's runner options: the last of repeated ones counts, and `shift` cannot be set there."""
    found = {key: parameters.get(key) for key in LoadOptions.__struct_fields__ if key != "shift"}
    last = {key: value[-1] if isinstance(value, tuple) else value for key, value in found.items()}
    return {key: value for key, value in last.items() if isinstance(value, int)}


def needs_reload(facts: ModelFacts, running: EffectiveOptions, asked: EffectiveOptions) -> bool:
    """Return whether a request with `asked` makes Ollama reload the runner that was started with `running`.

    Context or batch that is automatic on both sides never differs; automatic on one side counts with its default.
    Adapters, projectors and a runner that does not respond also cause a reload; that is not checked here.
    """
    if running.shift != asked.shift:
        return True
    if not (running.num_ctx_auto and asked.num_ctx_auto) and clamped(asked.num_ctx, facts) != running.num_ctx:
        return True
    if not (running.num_batch_auto and asked.num_batch_auto) and asked.num_batch != running.num_batch:
        return True
    if asked.num_gpu >= 0 and asked.num_gpu != running.num_gpu:
        return True
    rest = ("main_gpu", "num_thread", "use_mmap", "draft_num_predict")
    return any(getattr(running, key) != getattr(asked, key) for key in rest)


def has_flash_attention(gpus: Sequence[Gpu], settings: ServerSettings) -> bool:
    """Return whether Ollama starts a runner on these cards with flash attention: as it is set, else if all can."""
    if settings.flash_attention == "auto":
        return supports_flash_attention(gpus)
    return settings.flash_attention == "on"


def supports_flash_attention(gpus: Sequence[Gpu]) -> bool:
    """Return whether every card supports it: CUDA compute 6.0 and above, except 7.2 (ml/device.go).

    Unknown compute counts as support, as do cards that are not CUDA's.
    """
    return all(_compute(gpu.compute) >= (6, 0) and _compute(gpu.compute) != (7, 2) for gpu in gpus)


def _compute(text: str) -> tuple[float, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor or 0)) if major.isdigit() and (minor or "0").isdigit() else (math.inf, 0)
