"""Who may go for a load, and which sets of them make room: what of that does not depend on the context. Pure.

A load is planned for many contexts, for each with the same residents on the same cards. So this is worked out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter

from router.core.decision.snapshot import Resident
from router.core.decision.victims import Evicted, VictimSets, never_waiting, without
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.runner import Gpu

MOST_TOGETHER = 8  # residents of which every set is considered for a split
MOST_SPLITS = 4  # the same over all cards, which takes longer; and as many that leave the oldest


class Evictable:
    """Those who may go for a load. `same` go in any case, of the `others` as few as possible, and `gpus` are the cards
    once `same` are gone.

    `idle` are those of the others for which nobody waits and that need not be kept, `dear` the weights of the rest.
    `costs` is what each costs (`victims.cost_of`), `booked` what Ollama has booked for each at most, by its weights.
    """

    __slots__ = ("_cards", "_together", "booked", "costs", "dear", "gpus", "idle", "others", "same", "staying")

    def __init__(
        self,
        same: Evicted,
        others: Evicted,
        residents: Sequence[Resident],
        gpus: tuple[Gpu, ...],
        booked: Mapping[str, OllamaResident],
        costs: Mapping[str, int],
    ) -> None:
        self.same, self.others, self.gpus = same, others, gpus
        self.booked, self.costs = booked, costs
        self.staying = without(same, residents)  # until others go
        self.idle = never_waiting(others)
        self.dear = frozenset([one.weights for one in without(self.idle, others)])
        self._cards: dict[int, OnCard] = {}
        self._together: dict[int, Together] = {}

    def price(self, resident: Resident) -> int:
        """Return what the eviction of `resident` costs."""
        return self.costs[resident.weights]

    def on_card(self, gpu: Gpu) -> OnCard:
        """Return those on `gpu`."""
        found = self._cards.get(gpu.index)
        if found is None:
            found = self._cards[gpu.index] = OnCard(self, gpu)
        return found

    def cheaper(self, cost: int | None) -> Together:
        """Return those that cost less than `cost` each (None = all), for a load on all cards."""
        members = self.others
        if cost is not None:
            members = tuple([one for one in members if self.costs[one.weights] < cost])
        found = self._together.get(len(members))  # they are the cheapest of the others
        if found is None:
            found = self._together[len(members)] = Together(self, members)
        return found

    def enough(self, victims: Evicted, count: int) -> Evicted:
        """Return `victims`, with the cheapest of the others if `count` must go."""
        if len(victims) >= count:
            return victims
        more = sorted(without(victims, self.others), key=self.price)
        return (*victims, *more[: count - len(victims)])


class OnCard:
    """The residents on one card that may go for a load on it alone."""

    __slots__ = ("_booked", "_booked_bytes", "_cost", "_gpu", "_is_frozen", "_reported", "_sets", "_who", "here")

    def __init__(self, who: Evictable, gpu: Gpu) -> None:
        self._who, self._gpu = who, gpu
        self.here = tuple([one for one in who.others if one.held_bytes.get(gpu.index)])
        self._cost = sum(map(who.price, self.here))
        self._booked = {name: one.booked_bytes(gpu.index) for name, one in who.booked.items()}
        self._booked_bytes = sum([self._booked[one.weights] for one in who.staying])
        total = gpu.total_bytes
        self._reported = [who.booked[one.weights].reported_free_bytes(gpu.index, total) for one in self.here]
        # While a resident stays on every card Ollama believes frozen figures; else it looks.
        self._is_frozen = all(self._is_covered(other) for other in who.gpus if other.index != gpu.index)
        self._sets: dict[tuple[int, ...], VictimSets] = {}

    def _is_covered(self, other: Gpu) -> bool:
        """Return whether a resident is on `other` that is not on this card."""
        here = self._gpu.index
        return any(one.held_bytes.get(other.index) and not one.held_bytes.get(here) for one in self._who.staying)

    def sets(self, need_bytes: int, believed_bytes: int) -> Iterator[tuple[int, Evicted]]:
        """Yield the sets after which `need_bytes` are free, and `believed_bytes` in Ollama's eyes, cheapest first.

        With each its cost; at the end all, after which Ollama looks again.
        """
        gpu, here = self._gpu, self.here
        stale: tuple[int, ...] = ()
        if self._is_frozen:  # while one with a stale figure stays, Ollama evicts
            stale = tuple([at for at, reported in enumerate(self._reported) if reported < believed_bytes])
        forced = tuple([here[at] for at in stale])
        room = need_bytes - gpu.free_bytes - sum([one.held_bytes[gpu.index] for one in forced])
        if not self._is_frozen:
            room = max(room, believed_bytes + gpu.context_bytes - gpu.free_bytes)
        unbooked = believed_bytes - gpu.total_bytes + self._booked_bytes
        unbooked -= sum([self._booked[one.weights] for one in forced])
        least = sum(map(self._who.price, forced))
        for cost, chosen in self._beside(stale).cheapest((room, unbooked)):
            yield least + cost, (*forced, *chosen)
        yield self._cost, here

    def _beside(self, forced: tuple[int, ...]) -> VictimSets:
        found = self._sets.get(forced)
        if found is None:
            rest = [one for at, one in enumerate(self.here) if at not in forced]
            held = [one.held_bytes[self._gpu.index] for one in rest]
            booked = [self._booked[one.weights] for one in rest]
            found = self._sets[forced] = VictimSets(rest, (held, booked), price=self._who.price)
        return found


class Together:
    """Residents that may go for a load on all cards together."""

    __slots__ = ("_accounted_bytes", "_free_bytes", "_sets", "_young", "members")

    def __init__(self, who: Evictable, members: Evicted) -> None:
        self.members = members
        booked = {one.weights: _booked_bytes(who.booked[one.weights], who.gpus) for one in who.staying}
        self._accounted_bytes = sum([gpu.total_bytes for gpu in who.gpus]) - sum(booked.values())
        self._free_bytes = sum([gpu.free_bytes for gpu in who.gpus])
        sizes = [sum(one.held_bytes.values()) for one in members], [booked[one.weights] for one in members]
        self._sets = VictimSets(members, sizes, MOST_TOGETHER, who.price)
        ranks = sorted(range(len(members)), key=lambda at: -members[at].order)
        self._young = list(_growing([members[at] for at in ranks[:-1]], booked, who))

    def sets(self, need_bytes: int, believed_bytes: int) -> list[tuple[int, Evicted]]:
        """Return the sets that are tried, cheapest first: the cheapest, and the youngest.

        If the youngest go, Ollama's figures for those that stay are right. After each `need_bytes` are free on all
        cards, and `believed_bytes` in Ollama's eyes.
        """
        room, unbooked = need_bytes - self._free_bytes, believed_bytes - self._accounted_bytes
        found = [one for one in islice(self._sets.cheapest((room, unbooked)), MOST_SPLITS + 1) if one[1]]
        young = ((cost, some) for held, booked, cost, some in self._young if held >= room and booked >= unbooked)
        found += islice(young, 2 * MOST_SPLITS + 1 - len(found))
        return sorted(found, key=itemgetter(0))


def _growing(
    members: Iterable[Resident], booked: Mapping[str, int], who: Evictable
) -> Iterator[tuple[int, int, int, Evicted]]:
    """Yield the first of `members`, the first two and so on: what they hold, what is booked for them, their cost."""
    held_bytes = booked_bytes = cost = 0
    some: Evicted = ()
    for one in members:
        held_bytes += sum(one.held_bytes.values())
        booked_bytes += booked[one.weights]
        cost += who.price(one)
        some = (*some, one)
        yield held_bytes, booked_bytes, cost, some


def _booked_bytes(resident: OllamaResident, gpus: Sequence[Gpu]) -> int:
    return sum([resident.booked_bytes(gpu.index) for gpu in gpus])
