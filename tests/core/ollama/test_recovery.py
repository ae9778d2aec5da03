"""Whether Ollama's wait for the memory of an unloaded model stalls."""

from dataclasses import replace

import pytest

from router.core.ollama.bookkeeping import OllamaResident
from router.core.ollama.recovery import Figures, FreeEntries, stall_chance
from router.core.units import GIB
from tests.core.facts import gpu_of

CONTEXT = 264 << 20


def resident(entry, size_gib, *, cards=(0,), free_gib=23.5):
    """Return what Ollama has booked for a model in an entry of its map, loaded with `free_gib` free."""
    parts = tuple(int(size_gib * GIB) // len(cards) for _ in cards)
    return OllamaResident(f"m{entry}", cards, parts, (int(free_gib * GIB),), entry=entry)


def cards_with(*residents, foreign_gib=0.0):
    """Return a card of 24 GB and one of 12 GB as the driver shows them with these loaded."""
    gpus = [gpu_of(0, 24, 23.5 - foreign_gib), gpu_of(1, 12, 11.5)]
    for one in residents:
        for card, part in zip(one.cards, one.buffers_bytes, strict=True):
            gpus[card] = replace(gpus[card], free_bytes=gpus[card].free_bytes - part - CONTEXT)
    return gpus


def chance(victim, *others, cards=2, foreign_gib=0.0):
    """Return the chance of a stall if `victim` is unloaded beside `others`."""
    before = cards_with(victim, *others, foreign_gib=foreign_gib)[:cards]
    after = cards_with(*others, foreign_gib=foreign_gib)[:cards]
    figures = [Figures.of(one, before) for one in (victim, *others)]
    return stall_chance(figures[0], figures, before, after)


def test_a_new_runner_takes_the_lowest_free_entry():
    """As in a Go map of up to eight entries."""
    assert [FreeEntries(taken).take() for taken in ((), (0, 1), (1, 2), (0, 2))] == [0, 2, 0, 1]
    entries = FreeEntries((0, 1, 3))
    assert [entries.take(), entries.take()] == [2, 4]
    entries.give_back(1)
    assert [entries.take(), entries.take()] == [1, 5]


def test_the_last_on_the_only_card_never_stalls():
    """Ollama queries the card."""
    assert chance(resident(0, 8), cards=1) == 0


@pytest.mark.parametrize("younger", [resident(1, 4, free_gib=15)])
def test_the_one_in_the_lower_entry_goes_without_a_stall(younger):
    """Observed: the oldest first took 0.26 s in 9 of 10 tries, the youngest first 5 s."""
    older = resident(0, 8)
    assert chance(older, younger, cards=1) == 1 / 8
    assert chance(younger, older, cards=1) == 7 / 8
    assert chance(younger, older, resident(4, 2, free_gib=11), cards=1) == 7 / 8  # a walk begins at any of 8 entries
    assert chance(older, younger, resident(4, 2, free_gib=11), cards=1) == 4 / 8


def test_the_entry_counts_and_not_the_age():
    """A new runner takes the entry of one that has gone, below an older one's."""
    older, younger = resident(1, 8), resident(0, 4, free_gib=15)
    assert chance(younger, older, cards=1) == 1 / 8
    assert chance(older, younger, cards=1) == 7 / 8


def test_a_split_model_that_stays_hides_what_comes_back():
    """Observed: its figures replace those of the one on a single card."""
    single, split = resident(0, 11.9), resident(1, 10.5, cards=(0, 1), free_gib=10.8)
    assert chance(single, split) == 1
    assert chance(split, single) == 0


def test_where_the_second_card_becomes_empty_the_wait_ends():
    """Ollama books nothing on it, and then queries both cards: less is free than it took for granted."""
    big, small = resident(0, 20), resident(1, 5, cards=(1,))
    assert chance(small, big) == 0


def test_a_first_card_that_becomes_empty_may_stall():
    """What Ollama took as free on the second card makes up for a part of what comes back."""
    big, small = resident(0, 18), resident(1, 9, cards=(1,))
    assert chance(big, small) == 1


def test_memory_that_others_took_since_ends_the_wait():
    """Less is free than before, and the unsigned difference wraps round."""
    big, small = resident(0, 18), resident(1, 9, cards=(1,))
    assert chance(big, small, foreign_gib=10) == 0
