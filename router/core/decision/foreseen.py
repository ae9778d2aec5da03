"""Whether Ollama would load a model exactly where a plan puts it, whatever it has booked for its residents. Pure.

A plan is sound only if every outcome that Ollama's rules allow, under every booking that is possible, evicts nobody and
takes the plan's cards: an outcome that is only likely spills now and then.

What is booked for a resident on one card is known: `/api/ps` reports it. Of one that is split only the sum is known. It
lacks the buffers that Ollama loses; how they are divided over the cards is not known, nor on which card the projector
is. So each part is bounded from both sides. What Ollama believes free also depends on the order in which it asks its
residents. Its rules are monotone in what it believes free, so the extremes decide: a split needs enough where the least
seems free, and no card that would do alone where the most does; a single card must do where the least seems free on it
and the most on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from router.core.decision.evictable import Evictable
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.victims import Evicted, cost_of
from router.core.ollama.bookkeeping import Free, OllamaResident, Stake, believed_free_bounds, live_free, stakes
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu
from router.core.ollama.scheduler import Asked

SPLIT_SLACK = 1.1
"""Factor on what a split runner holds per card, which is measured while others allocate and free."""

OTHER_CARDS = "Ollama would choose other cards"
EVICTS = "Ollama would evict another model"


class Cleared:
    """The cards of a snapshot once some residents are gone, and what Ollama then believes of them.

    `gone` are those residents, as bits of the books, `stay` the others. Nothing here depends on the model to load, so a
    set of victims is worked out once for all contexts of a load.
    """

    __slots__ = ("_before", "_bounds", "_covered", "_gpus", "_stakes", "free", "gone", "have_bytes", "stay")

    def __init__(
        self,
        gone: int,
        gpus: tuple[Gpu, ...],
        evicted: Evicted,
        stay: Evicted,
        stakes_of: dict[str, tuple[Stake, ...]],
    ) -> None:
        self.gone, self.stay = gone, stay
        self.free = free_without(evicted, gpus)
        self.have_bytes = sum(self.free)
        self._before, self._stakes = gpus, stakes_of
        self._gpus: tuple[Gpu, ...] | None = None
        self._bounds: tuple[Free, Free] | None = None
        self._covered: frozenset[int] | None = None

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The cards with their free memory then."""
        if self._gpus is None:
            self._gpus = with_free(self._before, self.free)
        return self._gpus

    @property
    def covered(self) -> frozenset[int]:
        """The cards on which a resident stays: while it is all of them, Ollama does not query them."""
        if self._covered is None:
            self._covered = frozenset([card for one in self.stay for card, size in one.held_bytes.items() if size])
        return self._covered

    @property
    def unbooked(self) -> Free:
        """The bytes of each card that are certainly not booked for those who stay, at most."""
        left = [gpu.total_bytes for gpu in self._before]
        for one in self.stay:
            for stake in self._stakes[one.weights]:
                left[stake.card] -= stake.most_booked_bytes
        return tuple([max(0, one) for one in left])

    @property
    def told(self) -> list[int | None]:
        """The least that a resident who stays tells of each card, in bytes; None if none is there."""
        least: list[int | None] = [None] * len(self.free)
        for one in self.stay:
            for card, low, *_ in self._stakes[one.weights]:
                known = least[card]
                least[card] = low if known is None else min(known, low)
        return least

    def extremes(self, cards: Sequence[int]) -> tuple[Free, ...]:
        """Return what Ollama may believe free, the least first, as far as it decides about a load on `cards`."""
        if self._bounds is None:
            live = live_free(self._before, self.free) if not self.stay else ()
            self._bounds = (live, live) if live else self._believed()
        least, most = self._bounds
        if len(cards) == len(self.free):
            return self._bounds if self.stay or len(cards) > 1 else (least,)
        return (tuple([least[at] if at in cards else most[at] for at in range(len(self.free))]),)

    def _believed(self) -> tuple[Free, Free]:
        return believed_free_bounds(self._before, [self._stakes[one.weights] for one in self.stay], self.free)


@dataclass(frozen=True, slots=True)
class Books:
    """What Ollama has booked for each resident of a snapshot, by its weights, as far as that is known.

    `most`: as much as possible. `least`: as little, and of a split one the figures lost that often are. `costs` is what
    the eviction of each costs (`victims.cost_of`).
    """

    snapshot: Snapshot
    most: dict[str, OllamaResident]
    least: dict[str, OllamaResident]
    costs: dict[str, int]
    _stakes: dict[str, tuple[Stake, ...]]
    _bits: dict[int, int]
    _facts: dict[str, ModelFacts | None] = field(default_factory=dict)
    _cleared: dict[int, Cleared] = field(default_factory=dict)
    _evictable: dict[tuple[frozenset[str], frozenset[str]], Evictable] = field(default_factory=dict)

    @staticmethod
    def of(snapshot: Snapshot) -> Books:
        """Return the books of `snapshot`."""
        gpus = snapshot.gpus or ()
        context = {gpu.index: gpu.context_bytes for gpu in gpus}
        most = {one.weights: _booked(one, context, is_least=False) for one in snapshot.residents}
        least = {
            one.weights: _booked(one, context, is_least=True) if len(most[one.weights].cards) > 1 else most[one.weights]
            for one in snapshot.residents
        }
        costs = {one.weights: cost_of(one) for one in snapshot.residents}
        bits = {id(one): 1 << at for at, one in enumerate(snapshot.residents)}
        return Books(snapshot, most, least, costs, {name: stakes(gpus, most[name], least[name]) for name in most}, bits)

    def facts(self, weights: str) -> ModelFacts | None:
        """Return the facts of a resident's model, the first in the catalog; None if it is not installed."""
        if not self._facts:  # all at once: thousands may be installed, and each plan asks for several
            self._facts.update(dict.fromkeys(one.weights for one in self.snapshot.residents))
            for facts in self.snapshot.catalog.values():
                if facts.weights in self._facts and self._facts[facts.weights] is None:
                    self._facts[facts.weights] = facts
        return self._facts.get(weights)

    def evictable(self, forced: frozenset[str], spared: frozenset[str]) -> Evictable:
        """Return who may go for a load: `forced` (weights) do, and neither `spared` nor what is reserved for others."""
        key = forced.intersection(self.most), spared
        found = self._evictable.get(key)
        if found is None:
            residents = self.snapshot.residents
            same = tuple([one for one in residents if one.weights in forced])
            may_go = [one for one in residents if one.weights not in spared and not one.is_reserved]
            others = tuple([one for one in may_go if one.weights not in forced])
            gpus = self.cleared(same).gpus
            found = self._evictable[key] = Evictable(same, others, residents, gpus, self.most, self.costs)
        return found

    def cleared(self, evicted: Evicted) -> Cleared:
        """Return the cards once `evicted` are gone."""
        bits = self._bits
        gone = sum([bits[id(one)] for one in evicted])
        found = self._cleared.get(gone)
        if found is None:
            stay = [one for one, bit in zip(self.snapshot.residents, bits.values(), strict=True) if not gone & bit]
            found = self._cleared[gone] = Cleared(gone, self.snapshot.gpus or (), evicted, tuple(stay), self._stakes)
        return found

    def most_told(self, cards: Sequence[int], told: Sequence[int | None]) -> list[int]:
        """Return the most that Ollama may be told of each of `cards` while somebody stays on all of them.

        Where nobody stays for certain (None in `told`) it is what one of all residents there tells.
        """
        most = [0 if known is None else known for known in told]
        for stakes_of in self._stakes.values():
            for card, low, *_ in stakes_of:
                if told[card] is None:
                    most[card] = max(most[card], low)
        return [most[card] for card in cards]

    def obstacle(self, asked: Sequence[Asked], cards: Sequence[int], cleared: Cleared, most_loaded: int) -> str:
        """Return why Ollama might not load a model on exactly `cards`; "" if it certainly does.

        `asked` is what it is asked for: with the most that it may predict, and with the least. `most_loaded` is how
        many models it keeps loaded.
        """
        gpus, stay = self.snapshot.gpus or (), cleared.stay
        if len(stay) >= most_loaded:
            return EVICTS
        for one, free in zip(asked, cleared.extremes(cards)):  # noqa: B905 (the least decides alone on one card)
            check = one.preflight(gpus, free, has_residents=bool(stay))
            if check.cards != cards and set(check.cards) != set(cards):
                return OTHER_CARDS
            if check.evicts:
                return EVICTS
        return ""


def cards_without(evicted: Sequence[Resident], gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Return the cards with the memory of `evicted` freed."""
    return with_free(gpus, free_without(evicted, gpus))


def free_without(evicted: Sequence[Resident], gpus: Sequence[Gpu]) -> Free:
    """Return what is free on each card with the memory of `evicted` freed."""
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    for resident in evicted:
        for card, size in resident.held_bytes.items():
            if card in free:
                free[card] += size
    return tuple(map(min, free.values(), [gpu.total_bytes for gpu in gpus]))


def with_free(gpus: tuple[Gpu, ...], free: Free) -> tuple[Gpu, ...]:
    """Return the cards with so much free memory."""
    return tuple([gpu.with_free(left) for gpu, left in zip(gpus, free, strict=True)])


def booked(resident: Resident, gpus: Sequence[Gpu], *, is_least: bool = False) -> OllamaResident:
    """Return what Ollama has booked for `resident`, as far as it can be observed (see `OllamaResident`).

    Of one that is split that is the most which is possible on each card; with `is_least` the least, and of what was
    free at its load only the first card's figure, as Ollama often loses the others.
    """
    return _booked(resident, {gpu.index: gpu.context_bytes for gpu in gpus}, is_least=is_least)


def _booked(resident: Resident, context: dict[int, int], *, is_least: bool) -> OllamaResident:
    """Return the same; `context` are the bytes of the driver context on each card."""
    pinned = resident.options.main_gpu if resident.options else None
    held = resident.held_bytes
    if pinned is not None and pinned in context:
        cards: tuple[int, ...] = (pinned,)
    else:  # what it holds of a card that Ollama was found not to see is another program's
        cards = tuple(sorted([index for index, size in held.items() if size and index in context])) or (0,)
    free = [(card, resident.free_at_load_bytes.get(card)) for card in cards]
    frozen = tuple([None if left is None else left - context.get(card, 0) for card, left in free])
    return OllamaResident(
        weights=resident.weights,
        cards=cards,
        buffers_bytes=_buffers(resident, cards, context, is_least=is_least),
        free_at_load_bytes=frozen[:1] if is_least else frozen,
        keep_alive_s=resident.keep_alive_s,
        is_idle=not resident.in_flight,
        held_bytes=tuple([held.get(index, 0) for index in context]),
        entry=resident.entry,
    )


def _buffers(resident: Resident, cards: Sequence[int], context: dict[int, int], *, is_least: bool) -> tuple[int, ...]:
    """Return the bytes booked per card: all of them on a single one, else a bound.

    A part is at most what the runner holds there, and at least that less everything which Ollama has lost: buffers of
    sliding windows, projectors.
    """
    if len(cards) == 1:
        return (resident.size_vram_bytes,)
    # The probe's figures include the driver contexts, what Ollama has booked does not.
    parts = [max(0, resident.held_bytes.get(card, 0) - context.get(card, 0)) for card in cards]
    held = sum(parts) or 1
    whole = max(held, resident.size_vram_bytes)
    lost = whole - resident.size_vram_bytes
    full = [part * whole // held for part in parts]
    if is_least:
        return tuple(int(max(0, part - lost) / SPLIT_SLACK) for part in full)
    return tuple(int(part * SPLIT_SLACK) for part in full)
