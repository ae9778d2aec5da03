"""Planning a switch, pure: which residents are evicted and where the model is loaded, so that Ollama has no choice.

A plan is sound if the model fits by llama.cpp's own arithmetic *and* Ollama's pre-flight check, replayed on what Ollama
believes, evicts nothing and places the model where the plan does (`ollama/scheduler.py`, `foresee_load`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from router.core.decision.need import MachineRules, MemoryNeed, need_of
from router.core.decision.snapshot import Resident, Snapshot
from router.core.memory.placement import Placement
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import foresee_load

STALL_BYTES = 4 << 30
"""An unload beside other residents may stall Ollama for 5 s, in which it could load this much. See docs/ollama.md,
"Keep-alive and unload"."""

SPLIT_SLACK = 1.1
"""Factor on what Ollama has booked per card for a split runner. Only the sum is known (it loses caches, and a projector
is on one card), so each part is overestimated: no eviction by Ollama may come as a surprise."""

MOST_RESIDENTS = 6  # of more residents than this only sets of the youngest are tried


@dataclass(frozen=True, slots=True)
class Plan:
    """One switch: unload `evict` (weights, in this order), then load the model with `options` on `cards`.

    `waits_for` are those of `evict` with requests in flight: the switch starts when they are idle. The needs include
    driver context, margin and safety (a split may use part of a margin: then the need is what the card has). `counted`
    are the options that the bytes stand for, if `options` leave a choice to Ollama. `adopts`: another client's runner
    is taken over unchanged. `expected_bytes` is by how much the probe should see free memory drop, by the formula
    alone.
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
    """Why no plan exists: the least that is needed, the most that is available, both in bytes, and a reason."""

    need_bytes: int
    have_bytes: int
    reason: str


def plan_at(
    facts: ModelFacts,
    options: LoadOptions,
    snapshot: Snapshot,
    rules: MachineRules,
    *,
    may_pin: bool,
    spared: frozenset[str] = frozenset(),
) -> Plan | Shortage:
    """Return the cheapest sound plan to load `facts` with exactly `options`, evicting none of `spared` (weights)."""
    assert snapshot.gpus
    memory = need_of(facts, options, rules)
    same = tuple(r for r in snapshot.residents if r.weights == facts.weights and facts.weights)
    nearest: Shortage | None = None
    may_go = tuple(one for one in snapshot.residents if one.weights not in spared)
    for evicted in eviction_sets(may_go, same):
        found = _plan_without(facts, options, memory, evicted, snapshot, rules, may_pin=may_pin)
        if isinstance(found, Plan):
            return found
        nearest = _nearer(nearest, found)
    return nearest or Shortage(0, 0, "others are in use")


def _nearer(one: Shortage | None, other: Shortage) -> Shortage:
    """Return the shortage that misses by less."""
    if one is None or other.have_bytes - other.need_bytes > one.have_bytes - one.need_bytes:
        return other
    return one


def _cost(evicted: Sequence[Resident]) -> tuple[int, int, int, int, int]:
    """Return what an eviction costs: kept models first, then busy ones, then wanted ones, then bytes, then age."""
    return (
        sum(r.kept for r in evicted),
        sum(r.in_flight > 0 for r in evicted),
        sum(r.wanted for r in evicted),
        sum(r.size_bytes + STALL_BYTES for r in evicted),
        -sum(r.order for r in evicted),
    )


def eviction_sets(residents: Sequence[Resident], always: tuple[Resident, ...]) -> Iterable[tuple[Resident, ...]]:
    """Return the sets of residents to evict, cheapest first.

    `always` (older runners of the same weights) is in each.
    """
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
    """Plan on the cards as they are after `evicted` were unloaded: on one card if one suffices, else split over all.

    Single cards come first, from the tightest to the roomiest, so that a big card stays free. On a machine with several
    cards a model on one card is pinned with `main_gpu`; a split one is not.
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
        if not (reason := _obstacle(facts, pinned, memory, (gpu,), gpus, stay, rules)):
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
    """Plan over all cards together."""
    have = sum(gpu.free_bytes for gpu in gpus)
    least = memory.footprint.need_bytes + sum(gpu.context_bytes for gpu in gpus)
    if least > have:  # too big even without margins: skip distributing the layers
        return _nearer(nearest, Shortage(least, have, "too big"))
    placement, spread = memory.on(gpus), options.at(options.num_ctx)
    reason = "too big"
    if placement.fits and not (reason := _obstacle(facts, spread, memory, gpus, gpus, stay, rules)):
        return _plan(spread, evicted, placement, memory)
    need = placement.need_bytes if placement.fits else max(placement.need_bytes, have + 1)
    return _nearer(nearest, Shortage(need, have, reason))


def _by_free(gpu: Gpu) -> tuple[int, int]:
    return gpu.free_bytes, gpu.index


def _cards_without(evicted: tuple[Resident, ...], snapshot: Snapshot) -> tuple[Gpu, ...]:
    """Return the cards with the memory of `evicted` freed."""
    assert snapshot.gpus
    if not evicted:
        return snapshot.gpus
    return tuple(replace(gpu, free_bytes=_free_bytes(gpu, evicted)) for gpu in snapshot.gpus)


def _free_bytes(gpu: Gpu, evicted: Iterable[Resident]) -> int:
    freed = sum(resident.held_bytes.get(gpu.index, 0) for resident in evicted)
    return min(gpu.total_bytes, gpu.free_bytes + freed)


def _obstacle(
    facts: ModelFacts,
    options: LoadOptions,
    memory: MemoryNeed,
    group: tuple[Gpu, ...],
    gpus: tuple[Gpu, ...],
    stay: tuple[Resident, ...],
    rules: MachineRules,
) -> str:
    """Return why Ollama would not load the model as planned, or why it would spill; "" if nothing is in the way."""
    foresight = foresee_load(facts, options, gpus, [booked(resident, gpus) for resident in stay], rules.settings)
    if foresight.evicts:
        return "Ollama would evict another model"
    if foresight.cards and set(foresight.cards) != {gpu.index for gpu in group}:
        return "Ollama would choose other cards"
    free = min(gpu.free_bytes for gpu in group)
    if rules.learned.banned(facts.weights, memory.asked, free, rules.now_s):
        return "it spilled before at this free level"
    return ""


def booked(resident: Resident, gpus: tuple[Gpu, ...]) -> OllamaResident:
    """Return what Ollama has booked for `resident`, as far as it can be observed (see `OllamaResident`)."""
    pinned = resident.options.main_gpu if resident.options else None
    context = {gpu.index: gpu.context_bytes for gpu in gpus}
    # What it holds of a card that Ollama was found not to see is another program's.
    cards = tuple(sorted(index for index, size in resident.held_bytes.items() if size and index in context)) or (0,)
    if pinned is not None and pinned in context:
        cards = (pinned,)
    # The probe's figures include the driver contexts, what Ollama has booked does not.
    sizes = [max(0, resident.held_bytes.get(card, 0) - context.get(card, 0)) for card in cards]
    buffers = [int(resident.size_vram_bytes * part * SPLIT_SLACK) // (sum(sizes) or 1) for part in sizes]
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
