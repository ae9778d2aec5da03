"""Planning one switch, pure: which residents go, where the newcomer is loaded, so that Ollama has no decision left.

A plan is sound when the newcomer fits by llama.cpp's own arithmetic *and* Ollama's pre-flight, replayed on what it
believes, evicts nothing and places the newcomer where we do (`ollama/scheduler.py`, `foresee_load`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from router.core.decision.context import ContextNeed
from router.core.decision.need import MachineRules, MemoryNeed, need_of
from router.core.decision.snapshot import Resident, Snapshot
from router.core.memory.placement import Placement
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import foresee_load

STALL_BYTES = 4 << 30
"""Beside other residents each unload may stall Ollama for 5 s: as long as loading this much. See docs/ollama.md,
"Keep-alive and unload"."""

SPLIT_SLACK = 1.1
"""How Ollama has booked a split runner is only known in sum (caches that it loses, a projector on one card): each part
is taken for so much larger, so that no eviction by Ollama comes as a surprise."""

MOST_RESIDENTS = 6  # subsets of more residents than this are tried youngest first only


@dataclass(frozen=True, slots=True)
class Plan:
    """One switch: unload `evict` (weights, in this order), then load the model with `options` on `cards`.

    `waits_for` are those of `evict` that have requests in flight: the switch starts when they are idle. The needs
    include driver context, margin and safety (a refilled split may dip into a margin: then it is what the card has);
    `counted` are the options that the bytes stand for, where `options` leave a choice to Ollama.
    `adopts`: somebody else's runner is taken over as it is. `expected_bytes` is what the probe should see go, by the
    formula alone.
    """

    options: LoadOptions
    evict: tuple[str, ...]
    waits_for: tuple[str, ...]
    cards: tuple[int, ...]
    need_bytes: int
    have_bytes: int
    need_by_card: tuple[int, ...] = ()
    expected_bytes: int = 0
    cache_bytes: int = 0
    adopts: bool = False
    counted: LoadOptions | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why no plan exists: the least that would be needed against the most that could be had, and a reason."""

    need_bytes: int
    have_bytes: int
    reason: str


def plan_switch(
    facts: ModelFacts,
    base: LoadOptions,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: MachineRules,
    *,
    may_pin: bool = True,
) -> Plan | Shortage:
    """The cheapest sound plan to load `facts` with the largest context of `need` that fits; `base` has the rest.

    Evictions are weighed before context: a smaller context beside neighbours is not preferred to a full one alone,
    but a plan is only taken at a smaller context when no plan exists at a larger one. Without `may_pin` the request
    cannot name a card, so Ollama must choose the one that we would.
    """
    found = _plan_at(facts, base.at(need.upper), snapshot, rules, may_pin=may_pin)
    if isinstance(found, Plan) or need.upper == need.lower:
        return found
    least = _plan_at(facts, base.at(need.lower), snapshot, rules, may_pin=may_pin)
    if isinstance(least, Shortage):  # then nothing in between has a plan either
        return least
    for num_ctx in contexts(need, rules.step):
        if need.lower < num_ctx < need.upper:
            between = _plan_at(facts, base.at(num_ctx), snapshot, rules, may_pin=may_pin)
            if isinstance(between, Plan):
                return between
    return least


def contexts(need: ContextNeed, step: int) -> Iterator[int]:
    """From the largest context down to the least, in halves rounded to `step`, ending with `lower` itself."""
    num_ctx = need.upper
    while num_ctx > need.lower:
        yield num_ctx
        num_ctx = max(need.lower, num_ctx * 3 // 4 // step * step)
    yield need.lower


def _plan_at(
    facts: ModelFacts, options: LoadOptions, snapshot: Snapshot, rules: MachineRules, *, may_pin: bool
) -> Plan | Shortage:
    assert snapshot.gpus
    memory = need_of(facts, options, rules)
    same = tuple(r for r in snapshot.residents if r.weights == facts.weights and facts.weights)
    nearest: Shortage | None = None
    for evicted in _subsets(snapshot.residents, same):
        found = _plan_without(facts, options, memory, evicted, snapshot, rules, may_pin=may_pin)
        if isinstance(found, Plan):
            return found
        nearest = _nearer(nearest, found)
    assert nearest is not None
    return nearest


def _nearer(one: Shortage | None, other: Shortage) -> Shortage:
    """The shortage that misses by less."""
    if one is None or other.have_bytes - other.need_bytes > one.have_bytes - one.need_bytes:
        return other
    return one


def _cost(evicted: Sequence[Resident]) -> tuple[int, int, int, int, int]:
    """What an eviction costs: kept models first, then waiting for the busy, then what is wanted again, then bytes."""
    return (
        sum(r.kept for r in evicted),
        sum(r.in_flight > 0 for r in evicted),
        sum(r.wanted for r in evicted),
        sum(r.size_bytes + STALL_BYTES for r in evicted),
        -sum(r.order for r in evicted),
    )


def _subsets(residents: Sequence[Resident], always: tuple[Resident, ...]) -> Iterable[tuple[Resident, ...]]:
    """Sets of residents to evict, cheapest first; `always` (an older runner of the same weights) is in each."""
    if not residents:
        return [()]
    others = sorted((r for r in residents if r not in always), key=lambda r: -r.order)
    if len(others) > MOST_RESIDENTS:
        return [(*always, *others[:count]) for count in range(len(others) + 1)]
    sets = [(*always, *chosen) for count in range(len(others) + 1) for chosen in combinations(others, count)]
    return sorted(sets, key=_cost)


def _plan_without(
    facts: ModelFacts,
    options: LoadOptions,
    memory: MemoryNeed,
    evicted: tuple[Resident, ...],
    snapshot: Snapshot,
    rules: MachineRules,
    *,
    may_pin: bool,
) -> Plan | Shortage:
    """The plan on the cards as they are once `evicted` has gone: one card if one suffices, else split over all.

    Single cards come first, the tightest that does before roomier ones, so that a big card stays free. On a machine
    with several cards a model on one card is pinned with `main_gpu`; a split one goes without.
    """
    gpus = _cards_without(evicted, snapshot)
    stay = tuple(r for r in snapshot.residents if r not in evicted) if evicted else snapshot.residents
    nearest: Shortage | None = None
    for gpu in sorted(gpus, key=_by_free) if len(gpus) > 1 else gpus:
        need = memory.need_bytes(gpu)
        if need > gpu.free_bytes:
            nearest = _nearer(nearest, Shortage(need, gpu.free_bytes, "too big"))
            continue
        pinned = options.at(options.num_ctx, gpu.index) if may_pin and len(gpus) > 1 else options
        if not (reason := _interferes(facts, pinned, memory, (gpu,), gpus, stay, rules)):
            return _plan(pinned, evicted, memory.on((gpu,)), memory)
        nearest = _nearer(nearest, Shortage(need, gpu.free_bytes, reason))
    assert nearest is not None
    return nearest if len(gpus) == 1 else _split(facts, options, memory, evicted, gpus, stay, rules, nearest)


def _split(
    facts: ModelFacts,
    options: LoadOptions,
    memory: MemoryNeed,
    evicted: tuple[Resident, ...],
    gpus: tuple[Gpu, ...],
    stay: tuple[Resident, ...],
    rules: MachineRules,
    nearest: Shortage,
) -> Plan | Shortage:
    """The plan over all cards together."""
    have = sum(gpu.free_bytes for gpu in gpus)
    least = memory.footprint.need_bytes + sum(gpu.context_bytes for gpu in gpus)
    if least > have:  # not even without margins: no need to deal the layers out
        return _nearer(nearest, Shortage(least, have, "too big"))
    placement, spread = memory.on(gpus), options.at(options.num_ctx)
    reason = "too big"
    if placement.fits and not (reason := _interferes(facts, spread, memory, gpus, gpus, stay, rules)):
        return _plan(spread, evicted, placement, memory)
    need = placement.need_bytes if placement.fits else max(placement.need_bytes, have + 1)
    return _nearer(nearest, Shortage(need, have, reason))


def _by_free(gpu: Gpu) -> tuple[int, int]:
    return gpu.free_bytes, gpu.index


def _cards_without(evicted: tuple[Resident, ...], snapshot: Snapshot) -> tuple[Gpu, ...]:
    """The cards with what `evicted` hold given back."""
    assert snapshot.gpus
    if not evicted:
        return snapshot.gpus
    return tuple(replace(gpu, free_bytes=_free_bytes(gpu, evicted)) for gpu in snapshot.gpus)


def _free_bytes(gpu: Gpu, evicted: Iterable[Resident]) -> int:
    coming_back = sum(resident.held_bytes.get(gpu.index, 0) for resident in evicted)
    return min(gpu.total_bytes, gpu.free_bytes + coming_back)


def _interferes(
    facts: ModelFacts,
    options: LoadOptions,
    memory: MemoryNeed,
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
    if rules.learned.banned(facts.weights, memory.asked, free, rules.now_s):
        return "it spilled before at this free level"
    return ""


def booked(resident: Resident, gpus: tuple[Gpu, ...]) -> OllamaResident:
    """What Ollama has booked for `resident`, from what can be observed of it (see `OllamaResident`)."""
    pinned = resident.options.main_gpu if resident.options else None
    cards = tuple(sorted(index for index, held in resident.held_bytes.items() if held)) or (0,)
    if pinned is not None:
        cards = (pinned,)
    context = {gpu.index: gpu.context_bytes for gpu in gpus}
    # the driver's contexts are in what the probe saw, but not in what Ollama has booked
    held = [max(0, resident.held_bytes.get(card, 0) - context.get(card, 0)) for card in cards]
    buffers = [int(resident.size_vram_bytes * part * SPLIT_SLACK) // (sum(held) or 1) for part in held]
    free = [resident.free_at_load_bytes.get(card) for card in cards]
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


def _plan(options: LoadOptions, evicted: tuple[Resident, ...], placement: Placement, memory: MemoryNeed) -> Plan:
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
        cache_bytes=memory.cache_bytes,
    )
