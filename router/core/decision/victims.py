"""Which residents a switch may evict: every set of them, cheapest first. Pure.

A set costs, in this order of importance: kept models, those that are reserved for other teams (they go only where it is
not known what fits), busy ones, wanted ones, bytes to load again, age. So nobody waits
for a busy resident while idle ones would do, and a kept one goes last. The bytes count by how likely they are loaded
again: a model that is used often costs more than a big one that was used once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop

from router.core.decision.snapshot import Resident

STALL_BYTES = 4 << 30
"""An unload beside other residents may stall Ollama for 5 s, in which it could load this much. See docs/ollama.md,
"Keep-alive and unload"."""

MOST_CHOICES = 12  # residents of which every set is tried
MOST_SORTED = 8  # residents of which all sets are put in order at once
_SORTED_SIZES = 2  # for so many demands

LEAST_USES, MOST_USES = 0.25, 1000.0
"""How often even an unused resident is expected to be loaded again, and the use beyond which more says nothing."""

_BYTES_BITS, _ORDER_BITS, _COUNT_BITS = 72, 40, 24

Evicted = tuple[Resident, ...]


def cost_of(resident: Resident) -> int:
    """Return what its eviction costs: one number, in which a cause of more importance outweighs all lesser ones."""
    cost = (resident.kept << _COUNT_BITS) + resident.is_reserved
    cost = (cost << _COUNT_BITS) + (resident.in_flight > 0)
    cost = (cost << _COUNT_BITS) + min(resident.wanted, 1 << 16)
    cost = (cost << _BYTES_BITS) + STALL_BYTES + int(resident.size_bytes * (LEAST_USES + min(resident.uses, MOST_USES)))
    youth = min(max(resident.order, 0), (1 << _ORDER_BITS) - 1)
    return (cost << (_ORDER_BITS + 8)) + (1 << _ORDER_BITS) - youth


@dataclass(frozen=True, slots=True)
class Demand:
    """What the victims must add up to: `sizes_bytes`, in the order of the residents, sum to at least `least_bytes`."""

    sizes_bytes: tuple[int, ...]
    least_bytes: int


def cheapest_sets(
    residents: Sequence[Resident],
    demands: Iterable[Demand] = (),
    most: int = MOST_CHOICES,
    price: Callable[[Resident], int] = cost_of,
) -> Iterator[tuple[int, Evicted]]:
    """Yield the sets of `residents` that meet all `demands`, each with its cost, cheapest first.

    Every set is tried of the `most` cheapest; of the others the cheapest beyond all of these. The order of `residents`
    has no effect. `price` returns what is `cost_of` each, for callers that have worked it out.
    """
    asked = tuple(demands)
    sets = VictimSets(residents, [demand.sizes_bytes for demand in asked], most, price)
    return sets.cheapest([demand.least_bytes for demand in asked])


class VictimSets:
    """The sets of `residents`, cheapest first, for any demand on the sums of their `sizes`: see `cheapest_sets`.

    What does not depend on how much is demanded is worked out once.
    """

    __slots__ = ("_costs", "_few", "_made", "_members", "_most", "_sizes")

    def __init__(
        self,
        residents: Sequence[Resident],
        sizes: Iterable[Sequence[int]],
        most: int = MOST_CHOICES,
        price: Callable[[Resident], int] = cost_of,
    ) -> None:
        prices = [price(one) for one in residents]
        ranks = sorted(range(len(residents)), key=lambda at: (prices[at], residents[at].weights))
        self._members, self._most = [residents[at] for at in ranks], most
        self._costs = tuple([prices[at] for at in ranks])
        self._sizes = [tuple([one[at] for at in ranks]) for one in sizes]
        self._few: list[tuple[int, ...]] | None = None
        self._made: dict[int, Evicted] = {}

    def cheapest(self, least_bytes: Sequence[int]) -> Iterator[tuple[int, Evicted]]:
        """Yield each set whose sizes sum to `least_bytes`, one figure for each of the sizes, with its cost."""
        demands = [(sizes, least) for sizes, least in zip(self._sizes, least_bytes, strict=True) if least > 0]
        if not demands:
            yield 0, ()
        if not self._members or any(sum(sizes) < least for sizes, least in demands):
            return
        members, most = self._members, self._most
        for cost, mask in self._subsets(demands, least_bytes):
            yield cost, self._chosen(mask)
        for count in range(most + 1, len(members) + 1):
            if all(sum(sizes[:count]) >= least for sizes, least in demands):
                yield sum(self._costs[:count]), tuple(members[:count])

    def _chosen(self, mask: int) -> Evicted:
        found = self._made.get(mask)
        if found is None:
            found = self._made[mask] = tuple([one for at, one in enumerate(self._members) if mask >> at & 1])
        return found

    def _subsets(
        self, demands: Sequence[tuple[tuple[int, ...], int]], least_bytes: Sequence[int]
    ) -> Iterator[tuple[int, int]]:
        """Yield cost and members (as bits) of each set but the empty one that meets the demands."""
        costs = self._costs[: self._most]
        if len(costs) > MOST_SORTED or len(least_bytes) != _SORTED_SIZES:
            return _subsets(costs, [(sizes[: len(costs)], least) for sizes, least in demands])
        if self._few is None:
            masks, vectors = _by_cost(costs), (costs, *(sizes[: len(costs)] for sizes in self._sizes))
            sums = [map(_subset_sums(one).__getitem__, masks) for one in vectors]
            self._few = list(zip(masks, *sums, strict=True))
        least, other_least = least_bytes
        return ((cost, mask) for mask, cost, one, other in self._few if one >= least and other >= other_least)


def _subsets(costs: tuple[int, ...], demands: Sequence[tuple[tuple[int, ...], int]]) -> Iterator[tuple[int, int]]:
    """Yield the same for many residents."""
    masks: Iterable[int] = range(1, 1 << len(costs))
    for sizes, least in demands:
        sums = _subset_sums(sizes)
        masks = [mask for mask in masks if sums[mask] >= least]
    sums = _subset_sums(costs)
    heap = [(sums[mask], mask) for mask in masks]
    heapify(heap)
    while heap:
        yield heappop(heap)


@lru_cache(maxsize=256)
def _by_cost(costs: tuple[int, ...]) -> list[int]:
    """Return every subset but the empty one, as bits, by the sum of its costs."""
    bits, found = len(costs), [0]
    for at, cost in enumerate(costs):
        step = (cost << bits) + (1 << at)
        found = sorted(found + [one + step for one in found])  # two ascending runs, which are merged
    least = (1 << bits) - 1
    return [one & least for one in found[1:]]


@lru_cache(maxsize=256)
def _subset_sums(values: tuple[int, ...]) -> list[int]:
    """Return the sum of every subset of `values`, at the index whose bits are its members."""
    sums = [0]
    for value in values:
        sums += [value + before for before in sums]
    return sums


def without(gone: Evicted, residents: Sequence[Resident]) -> Evicted:
    """Return the others, by identity: comparing them takes longer."""
    if not gone:
        return tuple(residents)
    ids = {id(one) for one in gone}
    return tuple(one for one in residents if id(one) not in ids)


def never_waiting(residents: Iterable[Resident]) -> Evicted:
    """Return those whose eviction makes nobody wait and that need not be kept."""
    return tuple(one for one in residents if not (one.kept or one.in_flight or one.is_reserved))


def named(residents: Iterable[Resident]) -> tuple[str, ...]:
    """Return their weights for a plan, the youngest first; `unload_order.py` decides in which order they go."""
    return tuple([one.weights for one in sorted(residents, key=lambda one: -one.order)])
