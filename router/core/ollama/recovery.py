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

from collections.abc import Iterable, Iterator, Sequence

from router.core.ollama.bookkeeping import OllamaResident, frozen_free, live_free
from router.core.ollama.runner import Gpu

STALL_S = 5.0
"""How long a wait that stalls lasts. Until then Ollama unloads nothing else, and counts no end of a request."""

BACK_SHARE = 0.75
"""Share of the victim's size by which free memory must have risen."""

ENTRIES = 8
"""Entries of a small Go map: a walk over it begins at each of them with the same chance."""


def free_entry(taken: Iterable[int]) -> int:
    """Return the entry of a new runner beside those in the entries `taken`: the lowest that is free."""
    used = set(taken)
    return next(entry for entry in range(len(used) + 1) if entry not in used)


def walks(residents: Sequence[OllamaResident]) -> Iterator[tuple[int, tuple[OllamaResident, ...]]]:
    """Yield each order in which Ollama may read `residents`, after the number of entries from which it comes about."""
    ranked = sorted(residents, key=lambda one: one.entry)
    for at, first in enumerate(ranked):
        yield (first.entry - ranked[at - 1].entry - 1) % ENTRIES + 1, (*ranked[at:], *ranked[:at])


def stall_chance(
    victim: OllamaResident, residents: Sequence[OllamaResident], before: Sequence[Gpu], after: Sequence[Gpu]
) -> float:
    """Return how likely the wait after an unload of `victim`, one of `residents`, stalls.

    `before` and `after` are the cards as the driver shows them with it, and without.
    """
    stalled = total = 0
    for count, order in walks(residents):
        rest = [one for one in order if one is not victim]
        risen = _read(after, rest) - _read(before, order)
        total += count
        stalled += count * (0 <= risen <= BACK_SHARE * sum(victim.buffers_bytes))
    return stalled / total


def _read(gpus: Sequence[Gpu], order: Sequence[OllamaResident]) -> int:
    """Return what Ollama believes free on all cards when it reads its residents in this order."""
    frozen = [free for free in frozen_free(gpus, order) if free is not None]
    return sum(frozen) if len(frozen) == len(gpus) else sum(live_free(gpus))
