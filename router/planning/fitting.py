"""What fits on a machine, counted apart from the router: by llama.cpp's arithmetic and Ollama's check, as simulated.

The router's own decisions are judged by this count, so nothing of `router/core/decision` is used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ollama_simulator.machine.arithmetic import LoadFailure, RunnerPlan, RunnerSpec, SimModel
from ollama_simulator.machine.llamacpp import FootprintArithmetic
from ollama_simulator.machine.spec import CardSpec
from ollama_simulator.models.library import real_model
from router.core.ollama.options import DEFAULT_BATCH, EffectiveOptions, ServerSettings, can_complete, clamped
from router.core.ollama.runner import Gpu
from router.core.ollama.scheduler import preflight
from router.core.units import MIB

LEAST_NUM_CTX = 8192
"""The least context with which a request that names none is to be served, in tokens (`defaults.min_num_ctx`)."""

ANSWER_TOKENS = 2048
"""Room for an answer in that context, in tokens."""

SAFETY_SHARE = 0.0125
"""The share of a card that a router may leave free to be sure. What fits only within it does not count as fitting."""

_ARITHMETIC = FootprintArithmetic()
_SETTINGS = ServerSettings()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs whole: bytes that it takes per card, its driver contexts included."""

    held_bytes: Mapping[int, int]

    @property
    def cards(self) -> tuple[int, ...]:
        """The cards that it uses."""
        return tuple(sorted(self.held_bytes))


def least_num_ctx(tag: str, prompt_tokens: int, named: int | None) -> int:
    """Return the least context that serves a request with `tag`: the named one, else one that holds its prompt."""
    wanted = named or max(LEAST_NUM_CTX, prompt_tokens + ANSWER_TOKENS)
    return clamped(wanted, sim_model(tag).facts)


def place(
    tag: str, num_ctx: int, cards: tuple[CardSpec, ...], taken_bytes: Sequence[int], *, is_alone: bool
) -> Place | None:
    """Return where Ollama runs `tag` whole at `num_ctx`, or None if it does not.

    `taken_bytes` is what is taken of each card, by other programs and by models that stay; `is_alone`: no model stays.
    A card that suffices by itself is preferred, the tightest first; only without other models is one split over all.
    """
    gpus = _gpus(cards, taken_bytes)
    spare = [int(gpu.total_bytes * SAFETY_SHARE) for gpu in gpus]
    for gpu in sorted(gpus, key=lambda gpu: gpu.free_bytes):
        left = gpu.free_bytes - spare[gpu.index]
        plan = _plan(tag, num_ctx, (left - gpu.context_bytes,), is_single=True)
        if plan is not None and not _evicts(tag, num_ctx, gpus, gpu.index, is_alone=is_alone):
            return Place({gpu.index: gpu.context_bytes + _device_bytes(plan, 0)})
    if len(gpus) == 1 or not is_alone or _chosen(tag, num_ctx, gpus) != len(gpus):
        return None
    left_by_card = tuple(gpu.free_bytes - spare[gpu.index] - gpu.context_bytes for gpu in gpus)
    plan = _plan(tag, num_ctx, left_by_card, is_single=False)
    if plan is None:
        return None
    return Place({gpu.index: gpu.context_bytes + _device_bytes(plan, gpu.index) for gpu in gpus})


def first_fitting(
    chain: Iterable[str],
    prompt_tokens: int,
    named: int | None,
    cards: tuple[CardSpec, ...],
    foreign_bytes: Sequence[int],
) -> str | None:
    """Return the first variant of `chain` that runs whole beside `foreign_bytes` per card, every resident evicted."""
    for tag in chain:
        num_ctx = least_num_ctx(tag, prompt_tokens, named)
        if _place_alone(tag, num_ctx, cards, tuple(foreign_bytes)) is not None:
            return tag
    return None


@lru_cache(maxsize=8192)
def _place_alone(tag: str, num_ctx: int, cards: tuple[CardSpec, ...], foreign_bytes: tuple[int, ...]) -> Place | None:
    return place(tag, num_ctx, cards, foreign_bytes, is_alone=True)


@lru_cache(maxsize=256)
def sim_model(tag: str) -> SimModel:
    """Return the simulator's facts of a tag."""
    found = real_model(tag).sim
    assert found is not None
    return found


@lru_cache(maxsize=256)
def weights_bytes(tag: str) -> int:
    """Return the bytes that a load reads."""
    plan = _plan(tag, 256, (1 << 50,), is_single=True)
    assert plan is not None
    return plan.gpu_weights_bytes


@lru_cache(maxsize=8192)
def least_held_bytes(tag: str, num_ctx: int, context_bytes: int) -> int:
    """Return what `tag` takes of one card at `num_ctx`, whatever the card."""
    plan = _plan(tag, num_ctx, (1 << 50,), is_single=True)
    assert plan is not None
    return context_bytes + _device_bytes(plan, 0)


def _gpus(cards: tuple[CardSpec, ...], taken_bytes: Sequence[int]) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(
            index=index,
            uuid=f"card {index}",
            name=spec.description,
            total_bytes=spec.total_mib * MIB,
            free_bytes=max(0, (spec.total_mib - spec.reserved_mib) * MIB - taken),
            context_bytes=spec.context_mib * MIB,
            compute=spec.compute,
        )
        for index, (spec, taken) in enumerate(zip(cards, taken_bytes, strict=True))
    )


@lru_cache(maxsize=65536)
def _plan(tag: str, num_ctx: int, free: tuple[int, ...], *, is_single: bool) -> RunnerPlan | None:
    """Return what the runner allocates on devices with `free` bytes each; None if some of it would be on the CPU."""
    model = sim_model(tag)
    target = _SETTINGS.fit_target_bytes
    if model.projector_bytes:
        target = -(-(model.projector_bytes + target) // MIB) * MIB
    spec = RunnerSpec(
        model=model,
        num_ctx=num_ctx,
        num_batch=_batch(model, num_ctx),
        is_single=is_single,
        has_projector=bool(model.projector_bytes),
        target_bytes=target,
    )
    try:
        plan = _ARITHMETIC.plan(spec, free)
    except LoadFailure:
        return None
    return plan if plan.is_full else None


def _batch(model: SimModel, num_ctx: int) -> int:
    return DEFAULT_BATCH if can_complete(model.facts) else num_ctx


def _device_bytes(plan: RunnerPlan, device: int) -> int:
    return sum(buffer.size_bytes for buffer in plan.buffers if buffer.device == device)


def _launch(tag: str, num_ctx: int, pin: int | None) -> EffectiveOptions:
    return EffectiveOptions(num_ctx, False, _batch(sim_model(tag), num_ctx), False, main_gpu=pin)


def _evicts(tag: str, num_ctx: int, gpus: Sequence[Gpu], pin: int, *, is_alone: bool) -> bool:
    """Return whether Ollama would evict another model for this load on card `pin`."""
    model = sim_model(tag)
    launch = _launch(tag, num_ctx, pin if len(gpus) > 1 else None)
    free = tuple(gpu.free_bytes for gpu in gpus)
    has_residents, blob_bytes = not is_alone, model.blob_bytes
    return preflight(
        model.facts, launch, gpus, free, _SETTINGS, has_residents=has_residents, blob_bytes=blob_bytes
    ).evicts


def _chosen(tag: str, num_ctx: int, gpus: Sequence[Gpu]) -> int:
    """Return over how many cards Ollama would spread the model."""
    model = sim_model(tag)
    free = tuple(gpu.free_bytes for gpu in gpus)
    launch, blob_bytes = _launch(tag, num_ctx, None), model.blob_bytes
    return len(preflight(model.facts, launch, gpus, free, _SETTINGS, has_residents=False, blob_bytes=blob_bytes).cards)
