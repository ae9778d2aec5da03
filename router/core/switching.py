"""Planning one switch, pure: which residents go, where the newcomer is loaded, so that Ollama has no decision left.

A plan is sound when the newcomer fits by llama.cpp's own arithmetic *and* Ollama's pre-flight, replayed on what it
believes, evicts nothing and places the newcomer where we do (`ollama_rules.foresee_load`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from router.core.capacity import Gpu, Resident, RunnerOptions, Snapshot
from router.core.catalog import ModelFacts
from router.core.context import ContextNeed
from router.core.footprint import Backend, RunOptions, footprint
from router.core.learning import Learned
from router.core.ollama_memory import OllamaResident
from router.core.ollama_options import DEFAULT_BATCH, EMBEDDING_BATCH, ServerSettings, can_complete, parallel_slots
from router.core.ollama_rules import foresee_load
from router.core.placement import Card, Placement, place

DEFAULT_SETTINGS = ServerSettings()
NOTHING_LEARNED = Learned.of(())
MOST_RESIDENTS = 6  # subsets of more residents than this are tried youngest first only


@dataclass(frozen=True, slots=True)
class MachineRules:
    """What is known of the server and its cards beside the snapshot."""

    settings: ServerSettings = DEFAULT_SETTINGS
    backend: Backend = "cuda"
    safety_bytes: int | None = None
    learned: Learned = NOTHING_LEARNED
    step: int = 2048
    now_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One switch: unload `evict` (weights, in this order), then load the model with `options` on `cards`.

    `waits_for` are those of `evict` that have requests in flight: the switch starts when they are idle. The needs
    include driver context, margin and safety (a refilled split may dip into a margin: then it is what the card has);
    `expected_bytes` is what the probe should see go, by the formula alone.
    """

    options: RunnerOptions
    evict: tuple[str, ...]
    waits_for: tuple[str, ...]
    cards: tuple[int, ...]
    need_bytes: int
    have_bytes: int
    need_by_card: tuple[int, ...] = ()
    expected_bytes: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why no plan exists: the least that would be needed against the most that could be had, and a reason."""

    need_bytes: int
    have_bytes: int
    reason: str


def run_options(facts: ModelFacts, options: RunnerOptions, settings: ServerSettings) -> RunOptions:
    """The footprint's view of a runner that Ollama starts with `options`; num_ctx and num_batch must be named."""
    num_ctx = options.num_ctx or 0
    batch = DEFAULT_BATCH if can_complete(facts) else min(EMBEDDING_BATCH, num_ctx)
    return RunOptions(
        num_ctx=num_ctx,
        num_batch=options.num_batch or batch,
        num_parallel=parallel_slots(facts, settings),
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention != "off",
    )


def plan_switch(
    facts: ModelFacts,
    base: RunnerOptions,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: MachineRules,
) -> Plan | Shortage:
    """The cheapest sound plan to load `facts` with the largest context of `need` that fits; `base` has the rest.

    Evictions are weighed before context: a smaller context beside neighbours is not preferred to a full one alone,
    but a plan is only taken at a smaller context when no plan exists at a larger one.
    """
    shortage: Shortage | None = None
    for num_ctx in contexts(need, rules.step):
        found = _plan_at(facts, replace(base, num_ctx=num_ctx), snapshot, rules)
        if isinstance(found, Plan):
            return found
        shortage = found
    assert shortage is not None
    return shortage


def contexts(need: ContextNeed, step: int) -> Iterator[int]:
    """From the largest context down to the least, in halves rounded to `step`, ending with `lower` itself."""
    num_ctx = need.upper
    while num_ctx > need.lower:
        yield num_ctx
        num_ctx = max(need.lower, num_ctx * 3 // 4 // step * step)
    yield need.lower


def _plan_at(facts: ModelFacts, options: RunnerOptions, snapshot: Snapshot, rules: MachineRules) -> Plan | Shortage:
    assert snapshot.gpus
    same = tuple(r for r in snapshot.residents if r.weights == facts.weights and facts.weights)
    shortage: Shortage | None = None
    for evicted in _subsets(snapshot.residents, same):
        found = _plan_without(facts, options, evicted, snapshot, rules)
        if isinstance(found, Plan):
            return found
        if shortage is None or found.have_bytes - found.need_bytes > shortage.have_bytes - shortage.need_bytes:
            shortage = found
    assert shortage is not None
    return shortage


def _cost(evicted: Sequence[Resident]) -> tuple[int, int, int, int, int]:
    """What an eviction costs: kept models first, then waiting for the busy, then what is wanted again, then bytes."""
    return (
        sum(r.kept for r in evicted),
        sum(r.in_flight > 0 for r in evicted),
        sum(r.wanted for r in evicted),
        sum(r.size_bytes for r in evicted),
        -sum(r.order for r in evicted),
    )


def _subsets(residents: Sequence[Resident], always: tuple[Resident, ...]) -> Iterable[tuple[Resident, ...]]:
    """Sets of residents to evict, cheapest first; `always` (an older runner of the same weights) is in each."""
    others = sorted((r for r in residents if r not in always), key=lambda r: -r.order)
    if len(others) > MOST_RESIDENTS:
        return [(*always, *others[:count]) for count in range(len(others) + 1)]
    sets = [(*always, *chosen) for count in range(len(others) + 1) for chosen in combinations(others, count)]
    return sorted(sets, key=_cost)


def _plan_without(
    facts: ModelFacts,
    options: RunnerOptions,
    evicted: tuple[Resident, ...],
    snapshot: Snapshot,
    rules: MachineRules,
) -> Plan | Shortage:
    """The plan on the cards as they are once `evicted` has gone: one card if one suffices, else split over all."""
    assert snapshot.gpus
    gpus = tuple(replace(gpu, free_bytes=_free_bytes(gpu, evicted, snapshot)) for gpu in snapshot.gpus)
    stay = tuple(r for r in snapshot.residents if r not in evicted)
    best: Shortage | None = None
    for group, pinned in _groups(gpus, options):
        placement = _place(facts, pinned, group, rules)
        if placement.fits and not (reason := _interferes(facts, pinned, group, gpus, stay, rules)):
            cache = cache_bytes(facts, run_options(facts, pinned, rules.settings), rules)
            return _plan(pinned, evicted, placement, cache)
        reason = "" if not placement.fits else reason
        found = Shortage(placement.need_bytes, sum(d.have_bytes for d in placement.devices), reason or "too big")
        if best is None or found.have_bytes - found.need_bytes > best.have_bytes - best.need_bytes:
            best = found
    assert best is not None
    return best


def _free_bytes(gpu: Gpu, evicted: Iterable[Resident], snapshot: Snapshot) -> int:
    coming_back = sum(resident.held_bytes.get(gpu.index, 0) for resident in evicted)
    return min(gpu.total_bytes, gpu.free_bytes + coming_back) - snapshot.reserved_bytes(gpu.index)


def _groups(gpus: tuple[Gpu, ...], options: RunnerOptions) -> Iterator[tuple[tuple[Gpu, ...], RunnerOptions]]:
    """Single cards first, the tightest that might do first so that a big card stays free, then all cards together.

    On a machine with several cards a model on one card is pinned with `main_gpu`; a split one goes without.
    """
    if len(gpus) == 1:
        yield gpus, options
        return
    for gpu in sorted(gpus, key=lambda gpu: (gpu.free_bytes, gpu.index)):
        yield (gpu,), replace(options, main_gpu=gpu.index)
    yield gpus, replace(options, main_gpu=None)


def _place(facts: ModelFacts, options: RunnerOptions, group: tuple[Gpu, ...], rules: MachineRules) -> Placement:
    asked = run_options(facts, options, rules.settings)
    residual, learned_safety, _ = rules.learned.residual_bytes(
        facts.weights,
        asked,
        tuple(gpu.name for gpu in group),
        rules.settings.version,
        cache_bytes=cache_bytes(facts, asked, rules),
        now_s=rules.now_s,
    )
    cards = [Card(g.index, g.free_bytes, g.context_bytes, rules.settings.fit_target_bytes) for g in group]
    safety = learned_safety if learned_safety is not None else rules.safety_bytes
    return place(facts, asked, cards, backend=rules.backend, safety_bytes=safety, residual_bytes=residual)


def _interferes(
    facts: ModelFacts,
    options: RunnerOptions,
    group: tuple[Gpu, ...],
    gpus: tuple[Gpu, ...],
    stay: tuple[Resident, ...],
    rules: MachineRules,
) -> str:
    """Why Ollama itself would do something else with this load; "" when it has no decision left."""
    foresight = foresee_load(facts, options, gpus, [booked(resident, gpus) for resident in stay], rules.settings)
    if foresight.evicts:
        return "Ollama would evict a neighbour"
    if foresight.cards and set(foresight.cards) != {gpu.index for gpu in group}:
        return "Ollama would place it elsewhere"
    free = min(gpu.free_bytes for gpu in group)
    if rules.learned.banned(facts.weights, run_options(facts, options, rules.settings), free, rules.now_s):
        return "it spilled before at this free level"
    return ""


def cache_bytes(facts: ModelFacts, asked: RunOptions, rules: MachineRules) -> int:
    """KV cache and recurrent state by the formula: what a hidden KV type or slot count multiplies."""
    found = footprint(facts, asked, backend=rules.backend)
    return found.kv_bytes + found.state_bytes


def booked(resident: Resident, gpus: tuple[Gpu, ...]) -> OllamaResident:
    """What Ollama has booked for `resident`, from what can be observed of it (see `OllamaResident`)."""
    pinned = resident.options.main_gpu if resident.options else None
    cards = tuple(sorted(index for index, held in resident.held_bytes.items() if held)) or (0,)
    if pinned is not None:
        cards = (pinned,)
    held = [resident.held_bytes.get(card, 0) for card in cards]
    buffers = [resident.size_vram_bytes * part // (sum(held) or 1) for part in held]
    free = [resident.free_at_load_bytes.get(card) for card in cards]
    context = {gpu.index: gpu.context_bytes for gpu in gpus}
    return OllamaResident(
        weights=resident.weights,
        cards=cards,
        buffers_bytes=tuple(buffers) if len(cards) > 1 else (resident.size_vram_bytes,),
        free_at_load_bytes=tuple(
            None if left is None else left - context.get(card, 0) for card, left in zip(cards, free, strict=True)
        ),
        keep_alive_s=resident.keep_alive_s,
        is_idle=not resident.in_flight,
        held_bytes=tuple(resident.held_bytes.get(gpu.index, 0) for gpu in gpus),
    )


def _plan(options: RunnerOptions, evicted: tuple[Resident, ...], placement: Placement, cache: int) -> Plan:
    youngest_first = sorted(evicted, key=lambda resident: -resident.order)
    return Plan(
        options=options,
        evict=tuple(resident.weights for resident in youngest_first),
        waits_for=tuple(resident.weights for resident in youngest_first if resident.in_flight),
        cards=tuple(device.index for device in placement.devices),
        need_bytes=placement.need_bytes,
        have_bytes=sum(device.have_bytes for device in placement.devices),
        need_by_card=tuple(min(device.need_bytes, device.have_bytes) for device in placement.devices),
        expected_bytes=placement.expected_bytes,
        cache_bytes=cache,
    )
