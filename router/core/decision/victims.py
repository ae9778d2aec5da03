"""Which residents a switch may evict: every set of them, cheapest first. Pure.

A set costs, in this order of importance: kept models, busy ones, wanted ones, bytes to load again, age. So nobody waits
for a busy resident while idle ones would do, and a kept one goes last. The bytes count by how likely they are loaded
again: a model that is used often costs more than a big one that was used once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import heapify, heappop

from router.core.decision.snapshot import Resident

STALL_BYTES = 4 << 30
"""An unload beside other residents may stall Ollama for 5 s, in which it could load this much. See docs/ollama.md,
"Keep-alive and unload"."""

MOST_CHOICES = 12
"""Of so many residents, the cheapest, every set is tried; of the others only the cheapest ones beyond all of these."""

LEAST_USES, MOST_USES = 0.25, 1000.0
"""How often even an unused resident is expected to be loaded again, and the use beyond which more says nothing."""

_BYTES_BITS, _ORDER_BITS, _COUNT_BITS = 72, 40, 24

Evicted = tuple[Resident, ...]


def cost_of(resident: Resident) -> int:
    """Return what its eviction costs: one number, in which a cause of more importance outweighs all lesser ones."""
    cost = (resident.kept << _COUNT_BITS) + (resident.in_flight > 0)
    cost = (cost << _COUNT_BITS) + min(resident.wanted, 1 << 16)
    cost = (cost << _BYTES_BITS) + STALL_BYTES + int(resident.size_bytes * (LEAST_USES + min(resident.uses, MOST_USES)))
    youth = min(max(resident.order, 0), (1 << _ORDER_BITS) - 1)
    return (cost << (_ORDER_BITS + 8)) + (1 << _ORDER_BITS) - youth


def cheapest_sets(residents: Sequence[Resident], card: int | None = None, least_bytes: int = 0) -> Iterator[Evicted]:
    """Yield the sets of `residents` that hold at least `least_bytes` on `card` (None = on all cards), cheapest first.

    The order of `residents` has no effect.
    """
    for _, chosen in priced_sets(residents, card, least_bytes):
        yield chosen


def priced_sets(
    residents: Sequence[Resident], card: int | None = None, least_bytes: int = 0
) -> Iterator[tuple[int, Evicted]]:
    """Yield the same sets, each with its cost."""
    if least_bytes <= 0:
        yield 0, ()
    held = [_held_bytes(resident, card) for resident in residents]
    if not residents or sum(held) < least_bytes:
        return
    ranked = sorted(zip(map(cost_of, residents), held, residents, strict=True), key=_rank)
    costs, sizes, members = zip(*ranked, strict=True)
    for cost, mask in _subsets(costs[:MOST_CHOICES], sizes[:MOST_CHOICES], least_bytes):
        yield cost, tuple(one for at, one in enumerate(members[:MOST_CHOICES]) if mask >> at & 1)
    for count in range(MOST_CHOICES + 1, len(members) + 1):
        if sum(sizes[:count]) >= least_bytes:
            yield sum(costs[:count]), members[:count]


def _rank(entry: tuple[int, int, Resident]) -> tuple[int, str]:
    return entry[0], entry[2].weights


def _held_bytes(resident: Resident, card: int | None) -> int:
    return sum(resident.held_bytes.values()) if card is None else resident.held_bytes.get(card, 0)


def _subsets(costs: tuple[int, ...], sizes: tuple[int, ...], least_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield cost and members (as bits) of each set but the empty one that holds at least `least_bytes`."""
    sums = zip(_subset_sums(costs), _subset_sums(sizes), strict=True)
    heap = [(cost, mask) for mask, (cost, size) in enumerate(sums) if mask and size >= least_bytes]
    heapify(heap)
    while heap:
        yield heappop(heap)


@lru_cache(maxsize=256)
def _subset_sums(values: tuple[int, ...]) -> list[int]:
    """Return the sum of every subset of `values`, at the index whose bits are its members."""
    sums = [0]
    for value in values:
        sums += [value + before for before in sums]
    return sums


def never_waiting(residents: Iterable[Resident]) -> Evicted:
    """Return those whose eviction makes nobody wait and that need not be kept."""
    return tuple(one for one in residents if not (one.kept or one.in_flight))
