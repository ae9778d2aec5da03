"""Planning a switch for given victims, pure: on which cards the model is loaded once they are gone.

A plan is sound if the model fits by llama.cpp's own arithmetic *and* Ollama certainly loads it where the plan does
(`foreseen.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from types import EllipsisType

from router.core.decision.foreseen import EVICTS, Books, Cleared
from router.core.decision.need import MachineRules, MemoryNeed
from router.core.decision.plan import TOO_BIG, Plan, Shortage
from router.core.decision.victims import Evicted, named
from router.core.memory.placement import Placement, SplitFit
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import max_loaded

STRAYS = "Ollama may count the cards in another order"


class Placing:
    """A load that is to be placed.

    `same` are those that go in any case, older runners of the same weights above all. With `may_pin` a model on one of
    several cards is pinned with `main_gpu`, unless that number may be another card's and Ollama chooses the right one
    by itself; a split one is not. Where Ollama does not, and that other card is too small, the card has no plan, and
    `would_stray` is set, until `let_stray`: such a load may spill, and is undone then. The same goes for a load that is
    not pinned, as long as the numbers are open and others stay.
    """

    __slots__ = (
        "_all", "_books", "_cards", "_facts", "_fit", "_gpus", "_least_split", "_may_pin", "_may_stray",
        "_most_loaded", "_obstacles", "_options", "_rules", "_same", "_splits", "_unproven", "memory", "needs",
        "would_stray",
    )  # fmt: skip

    def __init__(
        self,
        facts: ModelFacts,
        options: LoadOptions,
        memory: MemoryNeed,
        rules: MachineRules,
        books: Books,
        same: Evicted,
        may_pin: bool,
    ) -> None:
        self._facts, self._options, self.memory, self._rules = facts, options, memory, rules
        self._books, self._same, self._may_pin = books, same, may_pin
        self._may_stray, self.would_stray = not books.snapshot.is_order_open, False
        self._unproven = books.snapshot.unproven
        self._gpus = books.snapshot.gpus or ()
        self._all = tuple(range(len(self._gpus)))
        self._cards = tuple([gpu.index for gpu in self._gpus])
        self._most_loaded = max_loaded(len(self._gpus), rules.settings)
        self.needs = [memory.need_bytes(gpu) for gpu in self._gpus]  # on each card alone
        self._least_split = least_of_split(memory, self._gpus)
        self._fit: SplitFit | None = None
        self._splits: dict[int, Placement] = {}  # by who is gone
        self._obstacles: dict[int, str] = {}

    def cleared(self, others: Evicted) -> Cleared:
        """Return the cards as they are after `same` and `others` were unloaded."""
        return self._books.cleared((*self._same, *others) if self._same else others)

    def let_stray(self) -> None:
        """Plan loads, too, that may go to another card which is too small: there is no other plan."""
        self._may_stray = True
        self._obstacles.clear()

    def without(self, others: Evicted) -> Plan | None:
        """Plan on the cards as they are after `same` and `others` were unloaded; return None if no plan is sound.

        Single cards come first, from the tightest to the roomiest, so that a big card stays free, then all together.
        """
        cleared = self.cleared(others)
        for at in self._by_free(cleared, [at for at in self._all if self.needs[at] <= cleared.free[at]]):
            if (found := self.on_card(at, others, cleared)) is not None:
                return found
        return self.on_all(others, cleared)

    def _by_free(self, cleared: Cleared, places: Sequence[int]) -> list[int]:
        return sorted(places, key=lambda at: (cleared.free[at], self._gpus[at].index))

    def on_card(self, at: int, others: Evicted, cleared: Cleared) -> Plan | None:
        """Plan on the card at this place alone, once `others` are gone."""
        if self.needs[at] > cleared.free[at]:
            return None
        options, reason = self._on_card(at, cleared)
        if reason:
            return None
        return _plan(options, (*self._same, *others), self.memory.on((cleared.gpus[at],)), self.memory)

    def on_all(self, others: Evicted, cleared: Cleared) -> Plan | None:
        """Plan on all cards together, once `others` are gone."""
        if not self.is_sound_split(cleared):
            return None
        options = self._options.at(self._options.num_ctx)
        return _plan(options, (*self._same, *others), self.split(cleared), self.memory)

    def is_sound_split(self, cleared: Cleared) -> bool:
        """Return whether there is a plan on all cards together."""
        if len(self.needs) == 1 or not self._may_hold(cleared):
            return False
        return not self.split_obstacle(cleared) and self.split(cleared).fits

    def miss(self, others: Evicted, only: int | EllipsisType | None = ...) -> Shortage:
        """Return by what a plan without `others` is missed: the nearest miss of all places.

        With `only` of the card at this place alone (None = only of all together).
        """
        cleared = self.cleared(others)
        places = self._by_free(cleared, self._all) if only is ... else [] if only is None else [only]
        misses = [self._single_miss(at, cleared) for at in places]
        if len(self.needs) > 1 and not isinstance(only, int):
            misses.append(self._split_miss(cleared))
        return reduce(nearer, misses)

    def is_too_big(self, others: Evicted) -> bool:
        """Return whether the model is too big even without `others`: nothing else is nearly in the way of it."""
        cleared = self.cleared(others)
        if any(need <= left for need, left in zip(self.needs, cleared.free, strict=True)):
            return False
        if not self._fits_split(cleared):
            return True
        return bool(self.split_obstacle(cleared)) and self.miss(others).reason == TOO_BIG

    def is_out_of_question(self, others: Evicted) -> bool:
        """Return whether no plan is possible at this context or a larger one, even if any of `others` go.

        It certainly is not where with all of them gone there is too little room everywhere, in fact or in Ollama's
        eyes. False = not known.
        """
        cleared = self.cleared(others)
        places: list[tuple[int, ...]] = [(at,) for at in self._all if self.needs[at] <= cleared.free[at]]
        if self._fits_split(cleared):
            places.append(self._all)
        return all(self._is_believed_full(one, cleared) for one in places)

    def _is_believed_full(self, places: tuple[int, ...], cleared: Cleared) -> bool:
        """Return whether Ollama believes that too little is free there, all the more while others stay as well.

        It believes free at most what is not booked, nor more than the cards have now while it queries them. While a
        resident stays on every card it believes the least that any of them tells of a card.
        """
        believed_bytes = self.memory.least_believed_bytes
        if cleared.stay and believed_bytes > sum([cleared.unbooked[at] for at in places]):
            return True
        reason = self.split_obstacle(cleared) if len(places) > 1 else self._on_card(places[0], cleared)[1]
        if reason != EVICTS:
            return False
        told = cleared.told
        return None not in told or believed_bytes > sum(self._books.most_told(places, told))

    def _on_card(self, at: int, cleared: Cleared) -> tuple[LoadOptions, str]:
        """Return the options of a load on this card alone, and what is in its way; "" = nothing."""
        is_pinned = self._may_pin and len(self.needs) > 1
        if is_pinned and self._strays(at, cleared):
            if not self._obstacle(None, (at,), cleared):
                return self._options.at(self._options.num_ctx), ""  # Ollama finds the card without its number
            if not self._may_stray:
                self.would_stray = True
                return self._options, STRAYS
        options = self._options.at(self._options.num_ctx, self._gpus[at].index) if is_pinned else self._options
        return options, self._obstacle(options.main_gpu, (at,), cleared)

    def _single_miss(self, at: int, cleared: Cleared) -> Shortage:
        need, have = self.needs[at], cleared.free[at]
        return Shortage(need, have, TOO_BIG if need > have else self._on_card(at, cleared)[1])

    def _strays(self, at: int, cleared: Cleared) -> bool:
        """Return whether the number of this card may be that of a card which is too small."""
        unproven = [other for other in self._all if self._gpus[other].index in self._unproven]
        return at in unproven and any(self.needs[other] > cleared.free[other] for other in unproven)

    def _fits_split(self, cleared: Cleared) -> bool:
        return len(self.needs) > 1 and self._may_hold(cleared) and self.split(cleared).fits

    def _may_hold(self, cleared: Cleared) -> bool:
        """Return whether all cards together may hold the model. If their sum is too little, no layer is laid out."""
        return self._least_split <= cleared.have_bytes

    def split(self, cleared: Cleared) -> Placement:
        """Return the layers on all cards together."""
        found = self._splits.get(cleared.gone)
        if found is None:
            if self._fit is None:
                self._fit = self.memory.split_over(self._gpus)
            found = self._splits[cleared.gone] = self._fit.placement(cleared.free)
        return found

    def split_obstacle(self, cleared: Cleared) -> str:
        """Return what is in the way of all cards together; "" = nothing but perhaps the room."""
        found = self._obstacles.get(cleared.gone)
        if found is None:
            found = self._obstacles[cleared.gone] = self._obstacle(None, self._all, cleared)
        return found

    def _split_miss(self, cleared: Cleared) -> Shortage:
        have = cleared.have_bytes
        if not self._may_hold(cleared):  # too big even without margins
            return Shortage(self._least_split, have, TOO_BIG)
        placement = self.split(cleared)
        if placement.fits:
            return Shortage(placement.need_bytes, have, self.split_obstacle(cleared))
        return Shortage(max(placement.need_bytes, have + 1), have, TOO_BIG)

    def _obstacle(self, main_gpu: int | None, places: tuple[int, ...], cleared: Cleared) -> str:
        """Return why the load would not go as planned; "" if nothing is in the way."""
        if not self._may_stray and main_gpu is None and cleared.stay:
            self.would_stray = True  # what Ollama believes of a card depends on who is there by its numbers
            return STRAYS
        cards = self._cards if places is self._all else tuple([self._gpus[at].index for at in places])
        if reason := self._books.obstacle(self.memory.asked_of(main_gpu), cards, cleared, self._most_loaded):
            return reason
        free = min([cleared.free[at] for at in places])
        if self._rules.learned.banned(self._facts.weights, self.memory.asked, free, self._rules.now_s):
            return "it spilled before at this free level"
        return ""


def nearer(one: Shortage, other: Shortage) -> Shortage:
    """Return the shortage that misses by less."""
    if other.have_bytes - other.need_bytes > one.have_bytes - one.need_bytes:
        return other
    return one


def least_of_split(memory: MemoryNeed, gpus: Sequence[Gpu]) -> int:
    """Return what all cards together must at least have, without margins."""
    return memory.footprint.need_bytes + sum([gpu.context_bytes for gpu in gpus])


def _plan(options: LoadOptions, evicted: Evicted, placement: Placement, memory: MemoryNeed) -> Plan:
    return Plan(
        options=options,
        evict=named(evicted),
        waits_for=named([resident for resident in evicted if resident.in_flight]),
        cards=tuple([device.index for device in placement.devices]),
        need_bytes=placement.need_bytes,
        have_bytes=sum([device.have_bytes for device in placement.devices]),
        need_by_card=tuple([min(device.need_bytes, device.have_bytes) for device in placement.devices]),
        expected_bytes=placement.expected_bytes,
        cache_bytes=memory.cache_bytes,
    )
