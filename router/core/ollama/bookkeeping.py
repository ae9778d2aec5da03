"""What Ollama has booked for its loaded models and so believes to be free; it decides by this even if it is wrong.

See docs/ollama.md, "Booked memory".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import Gpu
from router.core.units import MIB

_NOT_COVERED = -1  # no resident tells what is free on the card

Free = tuple[int, ...]
"""Bytes believed free, per card."""


@dataclass(frozen=True, slots=True)
class OllamaResident:
    """What Ollama has booked for one loaded model.

    `weights` is its blob (`ModelFacts.weights`). `cards` are the cards it was placed on, in the server's numbering: the
    pinned card, else those on which the probe saw free memory drop. `buffers_bytes` and `free_at_load_bytes` are
    indexed by the *runner's own* device number, which starts at 0 on whichever cards it got. Ollama reads them with the
    server's number; that bug is reproduced here. A resident on one card has booked ``(size_vram,)`` of `/api/ps`; for a
    split one divide size_vram in the proportions that the probe saw. `free_at_load_bytes` is the probe's reading on
    that card right before the load, less the card's `context_bytes`; None = lost or unknown. `held_bytes` is what the
    driver frees per card when the model is unloaded (context included); it matters only for what follows an eviction.
    `entry` is its place in Ollama's map of runners (see `recovery.py`).
    """

    weights: str
    cards: tuple[int, ...]
    buffers_bytes: Free
    free_at_load_bytes: tuple[int | None, ...]
    keep_alive_s: float = 300.0
    is_idle: bool = True
    held_bytes: Free = ()
    entry: int = 0

    def booked_bytes(self, card: int) -> int:
        """Return the bytes that Ollama believes this model to hold on `card`.

        Wrong for a runner on a subset of the cards, as Ollama is.
        """
        return self.buffers_bytes[card] if card in self.cards and card < len(self.buffers_bytes) else 0

    def reported_free_bytes(self, card: int, total_bytes: int) -> int:
        """Return the bytes that Ollama takes as free on `card` when it asks this resident: frozen at its load."""
        booked = self.booked_bytes(card)
        frozen = self.free_at_load_bytes[card] if card < len(self.free_at_load_bytes) else None
        accounted = max(0, total_bytes - booked)
        return accounted if frozen is None else min(accounted, max(0, frozen - booked))


@lru_cache(maxsize=4096)
def predicted_bytes(facts: ModelFacts, context_cells: int, blob_bytes: int | None = None) -> int:
    """Return Ollama's PredictServerVRAM in bytes: the file and a rough f16 KV cache of `context_cells` cells.

    Cells are num_ctx × slots.

    `blob_bytes` is the size of the weights blob. Without it the sum of the model's layers is used, which is never less.
    """
    layers, embedding = int(facts.value("block_count", 0)), int(facts.value("embedding_length", 0))
    heads, kv_heads = _numbers(facts.value("attention.head_count")), _numbers(facts.value("attention.head_count_kv"))
    head_size = embedding // max(heads) if max(heads) > 0 else 0
    cache = 2 * layers * max(min(kv_heads), 1) * head_size * context_cells * 2
    return (facts.size_bytes if blob_bytes is None else blob_bytes) + cache


def _numbers(value: object) -> list[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [int(number) for number in values if isinstance(number, (int, float))] or [1]


def frozen_free(gpus: Sequence[Gpu], residents: Sequence[OllamaResident]) -> tuple[int | None, ...]:
    """Return the free bytes that Ollama reads off its residents, asked in this order until every card has a figure.

    None = no resident on that card.
    """
    free: list[int | None] = [None] * len(gpus)
    for resident in residents:
        if any(free[card] is None for card in resident.cards):
            for card in resident.cards:
                free[card] = resident.reported_free_bytes(card, gpus[card].total_bytes)
    return tuple(free)


def less_booked(gpus: Sequence[Gpu], free: Free, residents: Sequence[OllamaResident]) -> Free:
    """Return `free`, limited on each card to its total less everything that is booked on it."""
    booked = (sum(resident.booked_bytes(gpu.index) for resident in residents) for gpu in gpus)
    return tuple(min(left, max(0, gpu.total_bytes - mine)) for gpu, left, mine in zip(gpus, free, booked, strict=True))


def live_free(gpus: Sequence[Gpu], free: Sequence[int] | None = None) -> Free:
    """Return the free bytes that a query of the device reports: less a driver context of its own, in whole MiB.

    `free` are the bytes that are free on each card, if not those of `gpus`.
    """
    left = [gpu.free_bytes for gpu in gpus] if free is None else free
    return tuple([max(0, have - gpu.context_bytes) // MIB * MIB for gpu, have in zip(gpus, left, strict=True)])


def believed_free_outcomes(gpus: Sequence[Gpu], residents: Sequence[OllamaResident]) -> frozenset[Free]:
    """Return every set of free bytes per card that Ollama may believe, over all orders of its map of residents.

    While a card has no resident, a query of the device (`live_free`) replaces all figures. A resident split over
    several cards may have lost all of its free-at-load figures but the first; both cases are outcomes.
    """
    found: set[Free] = set()
    seen: set[tuple[int | None, ...]] = set()
    waiting: list[tuple[int | None, ...]] = [(None,) * len(gpus)]
    while waiting:
        free = waiting.pop()
        if free in seen:
            continue
        seen.add(free)
        after = [step for resident in residents for step in _readings(gpus, free, resident)]
        waiting += after
        if not after:
            known = tuple(left for left in free if left is not None)
            found.add(less_booked(gpus, known if len(known) == len(gpus) else live_free(gpus), residents))
    return frozenset(found)


class Stake(NamedTuple):
    """What one resident may make Ollama believe of one card, in bytes: the least and the most over all bookings."""

    card: int
    least_free_bytes: int
    most_free_bytes: int
    most_booked_bytes: int
    least_booked_bytes: int


def stakes(gpus: Sequence[Gpu], lowest: OllamaResident, highest: OllamaResident) -> tuple[Stake, ...]:
    """Return what a resident may make Ollama believe of each of its cards. Free memory has no part in it.

    The resident comes twice: with what makes the least seem free (the most that may be booked), and the most (the least
    booked, figures lost).
    """
    found = []
    for card in lowest.cards:
        total = gpus[card].total_bytes
        least, booked = lowest.reported_free_bytes(card, total), lowest.booked_bytes(card)
        if lowest is highest:
            found.append(Stake(card, least, least, booked, booked))
        else:
            most = highest.reported_free_bytes(card, total)
            found.append(Stake(card, least, most, booked, highest.booked_bytes(card)))
    return tuple(found)


def believed_free_bounds(
    gpus: Sequence[Gpu], residents: Iterable[Sequence[Stake]], free: Sequence[int] | None = None
) -> tuple[Free, Free]:
    """Return the least and the most that Ollama may believe free on each card, over all orders and bookings.

    Each resident is given by its stakes, `free` is as in `live_free`. Sound, not tight: one over several cards is read
    for all of them at once, here for each by itself.
    """
    least = [gpu.total_bytes for gpu in gpus]
    most = [_NOT_COVERED] * len(least)
    lowest, highest = least.copy(), least.copy()  # less everything that is booked
    for card, low, high, most_booked, least_booked in chain.from_iterable(residents):
        if low < least[card]:  # `min` takes three times as long
            least[card] = low
        if high > most[card]:
            most[card] = high
        lowest[card] -= most_booked
        highest[card] -= least_booked
    if _NOT_COVERED in most:
        least = most = list(live_free(gpus, free))
    return _at_most(least, lowest), _at_most(most, highest)


def _at_most(free: Sequence[int], left: Sequence[int]) -> Free:
    """Return `free`, on each card at most what is `left` of its total, which is not less than nothing."""
    return tuple([one if one < other else max(0, other) for one, other in zip(free, left, strict=True)])


def _readings(
    gpus: Sequence[Gpu], free: tuple[int | None, ...], resident: OllamaResident
) -> Iterator[tuple[int | None, ...]]:
    """Yield `free` after Ollama has read `resident`; nothing if Ollama would skip it."""
    if all(free[card] is not None for card in resident.cards):
        return
    lost = replace(resident, free_at_load_bytes=resident.free_at_load_bytes[:1])
    for reading in (resident, lost) if len(resident.cards) > 1 else (resident,):
        update = {card: reading.reported_free_bytes(card, gpus[card].total_bytes) for card in resident.cards}
        yield tuple(update.get(card, left) for card, left in enumerate(free))
