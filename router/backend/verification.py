"""The verification of a load: what `/api/ps` says about it, and what the probe saw it take.

| ps: in VRAM | the probe saw it take | result                                                                       |
| ----------- | --------------------- | ---------------------------------------------------------------------------- |
| nothing     | anything              | ON_CPU: Ollama uses no GPU at all. That says nothing about this model.        |
| a part      | anything              | PARTLY: it spilled                                                           |
| all         | half of it or more    | FULL, and measured                                                           |
| all         | nothing               | ON_CPU if ps counts no caches, or the probe has seen loads before; else FULL  |
| all         | less than half        | DOUBTED: its unload shows whether it was on the GPU                          |
| all         | no valid reading      | FULL, by ps alone                                                            |

On a CPU with AMX, ps calls a load whole that is in main memory: it counts AMX buffers as VRAM, which hold the weights,
but no caches. That tells it from a load on a card that the probe does not read; then the probe is doubted, not the
load. A load is doubtful where a part of it is in AMX buffers, or where other programs gave memory back: they may have
given back as much as it took, or more.

Only readings that were taken after the switch began (before the load) and after the load had returned measure it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from router.adapters.ollama import PsRow
from router.core.decision.switching import Plan
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu
from router.core.units import MIB

SEEN_SHARE = 0.5
"""A load that ps calls whole is in doubt if the probe saw less than this share of it."""

NOTHING_SHARE = 0.02
"""Less than this share is noise: the probe has not seen the load."""

MOST_SHARE, MOST_BYTES = 1.03, 768 * MIB
"""A runner takes at most this factor of the larger of ps' figure and the formula's, plus a driver context (measured:
docs/memory.md); a larger reading holds another program's memory as well."""

IDLE_BYTES = 64 * MIB
"""A card that lost less than this has no part of a load: not even a driver context."""

CACHES_BYTES = 256 * MIB
"""Caches above this can be told from the weights in ps' figure: part of the weights may be in main memory by design."""

BACK_SHARE = 0.9
"""Share of a runner's memory that must be free again before it counts as returned; so a doubted load was on the GPU."""


class Placed(Enum):
    """Where a load ended up."""

    FULL = "fully on the GPU"
    PARTLY = "partly on the GPU"
    ON_CPU = "on the CPU"
    DOUBTED = "fully on the GPU by ps, but not by the probe"


@dataclass(frozen=True, slots=True)
class LoadLook:
    """The state after a load has returned.

    `has_readings`: the probe was read before and after it, and nothing else was unloaded. Then `taken` is the memory in
    bytes per card that the probe saw it take, and `is_measured` if that is the runner's own, because no other program's
    memory moved with it. `is_unseen`: ps calls it whole, and the probe has seen nothing of it.
    """

    placed: Placed
    has_readings: bool = False
    taken: Mapping[int, int] = field(default_factory=dict)
    is_measured: bool = False
    is_unseen: bool = False

    @property
    def taken_bytes(self) -> int:
        """The memory that the probe saw it take, over all cards."""
        return sum(self.taken.values())


def look_at(
    facts: ModelFacts,
    plan: Plan,
    row: PsRow,
    before: tuple[Gpu, ...] | None,
    after: tuple[Gpu, ...] | None,
    *,
    has_left: bool,
    has_seen: bool,
) -> LoadLook:
    """Verify the load of `facts` by `plan`, which ps shows as `row`.

    `before` and `after` are valid readings of a probe that sees what loads take, None otherwise. With `has_left`
    another resident left during the load: then the readings do not measure it. `has_seen`: the probe saw loads before.
    """
    if row.size_vram_bytes <= 0:
        return LoadLook(Placed.ON_CPU)
    is_whole = row.size_vram_bytes >= row.size_bytes
    placed = Placed.FULL if is_whole else Placed.PARTLY
    if before is None or after is None or plan.adopts or has_left:
        return LoadLook(placed)
    taken = taken_between(before, after)
    taken_bytes = sum(taken.values())
    is_still = not any(count > IDLE_BYTES for count in taken_between(after, before).values())  # nobody gave any back
    if is_whole and is_still and taken_bytes < row.size_vram_bytes * NOTHING_SHARE:
        is_on_cpu = _has_no_caches(facts, plan, row) if plan.cache_bytes > CACHES_BYTES else has_seen
        return LoadLook(Placed.ON_CPU) if is_on_cpu else LoadLook(placed, True, is_unseen=True)
    if is_whole and taken_bytes < row.size_vram_bytes * SEEN_SHARE:
        return LoadLook(Placed.DOUBTED, True, taken)
    is_measured = row.size_vram_bytes * BACK_SHARE <= taken_bytes <= most_bytes(plan, row)
    return LoadLook(placed, True, taken, is_measured=is_measured)


def most_bytes(plan: Plan, row: PsRow) -> float:
    """Return the most that the runner of a load can have taken; a larger reading holds another program's memory too."""
    return max(plan.expected_bytes, row.size_vram_bytes) * MOST_SHARE + MOST_BYTES


def _has_no_caches(facts: ModelFacts, plan: Plan, row: PsRow) -> bool:
    """Return True if ps' figure leaves no room for the caches beside the weights."""
    return row.size_vram_bytes < facts.size_bytes + plan.cache_bytes // 2


def used_all_cards(plan: Plan, look: LoadLook) -> bool:
    """Return True if the load is on each card of its plan, as far as that was measured."""
    return not look.is_measured or all(look.taken.get(card, 0) >= IDLE_BYTES for card in plan.cards)


def came_back(row: PsRow, loaded: tuple[Gpu, ...] | None, unloaded: tuple[Gpu, ...] | None) -> bool:
    """Return True if nearly all of a doubted load came back when it was unloaded: it was on the GPU."""
    if loaded is None or unloaded is None:
        return False
    return sum(taken_between(unloaded, loaded).values()) >= row.size_vram_bytes * BACK_SHARE


def taken_between(before: tuple[Gpu, ...], after: tuple[Gpu, ...]) -> dict[int, int]:
    """Return by how many bytes the free memory of a card fell between two readings, for each card where it fell."""
    free = {gpu.index: gpu.free_bytes for gpu in after}
    lost = {gpu.index: gpu.free_bytes - free.get(gpu.index, gpu.free_bytes) for gpu in before}
    return {index: count for index, count in lost.items() if count > 0}
