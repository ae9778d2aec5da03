"""The order in which a switch unloads several residents, so that Ollama stalls as seldom as possible. Pure.

After each unload Ollama waits for the memory, and unloads nothing else meanwhile; a wait that cannot end runs into its
limit of 5 s. Whether it can depends on who is left on the cards (`core/ollama/recovery.py`), and so on the order. This
is its only home: a plan only names its victims.

It may also depend on the load: one that begins before Ollama has looked takes the memory that it looks for. A pause
before the load prevents that, but takes its time in each switch, while a stall costs only what is left of it when the
next model is to be unloaded: at the earliest when the load has ended, as a rule when it has answered who waited for it.
`Unloads.hides_s` says what a load at once would cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from router.core.decision.foreseen import booked, cards_without
from router.core.decision.snapshot import Resident
from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.recovery import STALL_S, Figures, stall_chance
from router.core.ollama.runner import Gpu

LAST = 0.5
"""How much a stall after the last unload counts: the load goes on meanwhile, only the next switch may have to wait."""

ROUGH = 0.95
"""The share of its expected memory that a load surely takes: one that takes a little more than was freed hides nothing,
one that takes a little less does."""

MOST_TRIED = 4
"""While more than these are left, only the one that stalls least is tried as the next."""


@dataclass(frozen=True, slots=True)
class Unloads:
    """Residents in the order in which to unload them, and how likely Ollama stalls after each.

    `hidden` is how much likelier it stalls after the last one if the load begins at once; None if that is unknown.
    """

    order: tuple[Resident, ...]
    stalls: tuple[float, ...]
    hidden: float | None = None

    def hides_s(self, until_s: float) -> float:
        """Return how many seconds of a stall to expect after a load at once, if the next unload is `until_s` later."""
        return math.inf if self.hidden is None else self.hidden * max(0.0, STALL_S - until_s)


def unloads(
    going: Sequence[Resident], residents: Sequence[Resident], gpus: tuple[Gpu, ...], load_bytes: int = 0
) -> Unloads:
    """Return in which order to unload `going`, which are some of `residents`, for a load that takes `load_bytes`.

    `gpus` are the cards with all of them loaded; () if their memory is unknown. Then the lowest entry goes first, which
    is best if all are on one card.
    """
    by_entry = tuple(sorted(going, key=lambda one: (one.entry, one.order)))
    if not going or not gpus:
        return Unloads(by_entry, ())
    orders = _Orders(by_entry, gpus, {id(one): Figures.of(_likely(one, gpus), gpus) for one in residents})
    order = orders.best(())[1]
    stalls = tuple(orders.chance(one, order[:at]) for at, one in enumerate(order))
    at_once = orders.chance_at(order[-1], order[:-1], int(ROUGH * load_bytes)) if load_bytes else stalls[-1]
    return Unloads(order, stalls, at_once - stalls[-1])


@dataclass(frozen=True, slots=True, eq=False)
class _Orders:
    """The orders of one switch. Residents are compared by identity."""

    going: tuple[Resident, ...]
    gpus: tuple[Gpu, ...]
    figures: dict[int, Figures]
    chances: dict[tuple[int, frozenset[int]], float] = field(default_factory=dict)

    def best(self, gone: tuple[Resident, ...]) -> tuple[float, tuple[Resident, ...]]:
        """Return the stalls to expect, and the best order of those that are left, after `gone` were unloaded."""
        left = [one for one in self.going if all(one is not other for other in gone)]
        if len(left) == 1:
            return LAST * self.chance(left[0], gone), (left[0],)
        if len(left) > MOST_TRIED:
            left = [min(left, key=lambda one: self.chance(one, gone))]
        orders = []
        for one in left:
            stalls, rest = self.best((*gone, one))
            orders.append((stalls + self.chance(one, gone), (one, *rest)))
        return min(orders, key=lambda order: order[0])

    def chance(self, victim: Resident, gone: tuple[Resident, ...]) -> float:
        """Return how likely the wait for `victim` stalls after `gone` were unloaded."""
        key = id(victim), frozenset(map(id, gone))
        if key not in self.chances:
            self.chances[key] = self.chance_at(victim, gone)
        return self.chances[key]

    def chance_at(self, victim: Resident, gone: tuple[Resident, ...], taken_bytes: int = 0) -> float:
        """Return the same if a load takes `taken_bytes` at once."""
        ids = set(map(id, gone))
        left = [figures for one, figures in self.figures.items() if one not in ids]
        before, after = cards_without(gone, self.gpus), cards_without((*gone, victim), self.gpus)
        return stall_chance(self.figures[id(victim)], left, before, after, taken_bytes)


def _likely(resident: Resident, gpus: tuple[Gpu, ...]) -> OllamaResident:
    """Return what is booked, neither the most nor the least: of a split one in the proportions that the probe saw."""
    least = booked(resident, gpus, is_least=True)
    held = [least.held_bytes[card] for card in least.cards]
    parts = tuple(part * resident.size_vram_bytes // (sum(held) or 1) for part in held)
    return least if len(least.cards) == 1 else replace(least, buffers_bytes=parts)
