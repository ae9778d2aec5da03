"""Ollama's wait for the memory of a model that it unloads: whether it ends at once or stalls. Pure.

Ollama adds up what it believes free on all cards before and after, and waits until the difference is 75 % of the
victim's size, or until 5 s have passed. It reads the figures off its residents, in the order of its map of runners. If
all of them come from residents that stay, they are the same before and after: the wait stalls. If the victim was read
before, or a card without residents makes Ollama query the cards after, the figures differ: the wait ends. Or they are
lower after, and the unsigned difference wraps round to a huge number: the wait ends, too.

The order is that of a Go map of up to eight entries: a new one takes the lowest that is free, and a walk begins at a
random entry. So of two residents the one in the lower entry is nearly always read first. See docs/ollama.md,
"Keep-alive and unload".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from router.core.ollama.bookkeeping import OllamaResident, live_free
from router.core.ollama.runner import Gpu

STALL_S = 5.0
"""How long a wait that stalls lasts. Until then Ollama unloads nothing else, and counts no end of a request."""

BACK_SHARE = 0.75
"""Share of the victim's size by which free memory must have risen."""

ENTRIES = 8
"""Entries of a small Go map: a walk over it begins at each of them with the same chance."""


class FreeEntries:
    """The entries beside those that are `taken`. A list of residents may be of any length: each step is a short one."""

    def __init__(self, taken: Iterable[int]) -> None:
        self._taken = set(taken)
        self._lowest = 0

    def take(self) -> int:
        """Take and return the entry of a new runner: the lowest that is free."""
        while self._lowest in self._taken:
            self._lowest += 1
        self._taken.add(self._lowest)
        return self._lowest

    def give_back(self, entry: int) -> None:
        """Free the entry of a runner that has gone."""
        self._taken.discard(entry)
        self._lowest = min(self._lowest, entry)


@dataclass(frozen=True, slots=True)
class Figures:
    """What Ollama reads off one resident: `free_bytes` by card, as it believes. `entry` is its place in the map.

    `size_bytes` is what it has booked for it on all cards.
    """

    entry: int
    size_bytes: int
    free_bytes: Mapping[int, int]

    @staticmethod
    def of(resident: OllamaResident, gpus: Sequence[Gpu]) -> Figures:
        """Return the figures of `resident`."""
        free = {card: resident.reported_free_bytes(card, gpus[card].total_bytes) for card in resident.cards}
        return Figures(resident.entry, sum(resident.buffers_bytes), free)


def stall_chance(
    victim: Figures, residents: Sequence[Figures], before: Sequence[Gpu], after: Sequence[Gpu], taken_bytes: int = 0
) -> float:
    """Return how likely the wait after an unload of `victim`, one of `residents`, stalls.

    `before` and `after` are the cards as the driver shows them with it, and without; `taken_bytes` of these are taken
    at once by a load.
    """
    stalled = total = 0
    live_before, live_after = sum(live_free(before)), sum(live_free(after)) - taken_bytes
    for count, order in _walks(residents):
        risen = _read([one for one in order if one is not victim], len(after), live_after)
        risen -= _read(order, len(before), live_before)
        total += count
        stalled += count * (0 <= risen <= BACK_SHARE * victim.size_bytes)
    return stalled / total


def _walks(residents: Sequence[Figures]) -> Iterator[tuple[int, list[Figures]]]:
    """Yield each order in which Ollama may read `residents`, after the number of entries from which it comes about."""
    ranked = sorted(residents, key=lambda one: one.entry)
    for at, first in enumerate(ranked):
        yield (first.entry - ranked[at - 1].entry - 1) % ENTRIES + 1, ranked[at:] + ranked[:at]


def _read(order: Sequence[Figures], cards: int, live_bytes: int) -> int:
    """Return what Ollama believes free on all cards when it reads its residents in this order.

    One of which all cards were read already is skipped; else its figures replace those read before. While a card has
    no resident, a query of the devices replaces all.
    """
    free: dict[int, int] = {}
    for one in order:
        if not one.free_bytes.keys() <= free.keys():
            free.update(one.free_bytes)
            if len(free) == cards:
                return sum(free.values())
    return live_bytes
