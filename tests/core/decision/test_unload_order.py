"""Which resident is unloaded first."""

import math
from dataclasses import replace

import pytest

from router.core.decision import unload_order as module
from router.core.decision.unload_order import unloads
from tests.core.facts import facts_of, gpu_of, resident_of

CONTEXT_GIB = 264 / 1024


def loaded(entry, gib=4.0, *, card=0, free_gib=23.5):
    """Return a model on one card, loaded with `free_gib` free there."""
    facts = facts_of(f"m{entry}:8b", gib)
    held_gib = gib + 0.125 + CONTEXT_GIB
    return resident_of(facts, held_gib=held_gib, card=card, entry=entry, order=entry, free_at_load_gib=free_gib)


def split(entry, gib=8.0, *, free_gib=23.5):
    """Return a model over both cards."""
    half = int((gib / 2 + 0.06 + CONTEXT_GIB) * (1 << 30))
    return replace(loaded(entry, gib, free_gib=free_gib), held_bytes={0: half, 1: half})


def cards_with(residents, count=1):
    """Return the cards with these loaded."""
    gpus = []
    for card, total in ((0, 24), (1, 12))[:count]:
        held = sum(one.held_bytes.get(card, 0) for one in residents) / (1 << 30)
        gpus.append(gpu_of(card, total, total - 0.5 - held))
    return tuple(gpus)


def order_of(going, residents, count=1):
    """Return the entries of `going` in the order in which they are unloaded."""
    return [one.entry for one in unloads(going, residents, cards_with(residents, count)).order]


def test_the_lowest_entry_of_ollamas_map_goes_first():
    """Its figures are nearly always the ones that Ollama has read before; age has no effect."""
    old, middle, young = loaded(1), loaded(2, free_gib=19), replace(loaded(0, free_gib=15), order=9)
    assert order_of([old, middle, young], [old, middle, young]) == [0, 1, 2]
    assert order_of([middle, old], [young, old, middle]) == [1, 2]


def test_a_split_model_goes_before_the_one_whose_memory_it_hides():
    """Observed on 24 + 12 GB: the other order stalls every time."""
    single, over_both = loaded(0, 11.9), split(1, 10.5, free_gib=11.5)
    assert order_of([single, over_both], [single, over_both], 2) == [1, 0]


def test_a_card_that_becomes_empty_goes_first():
    """From then on Ollama queries the cards after each unload, and sees what comes back."""
    first, second, other = loaded(0), loaded(1, free_gib=19), loaded(2, card=1)
    assert order_of([first, other], [first, second, other], 2)[0] == 2


def test_of_two_stalls_the_one_at_the_end_is_taken():
    """The load goes on during the last wait."""
    residents = [loaded(0), loaded(1, free_gib=19), loaded(2, free_gib=15)]
    assert order_of(residents[1:], residents) == [1, 2]


def test_without_a_probe_the_lowest_entry_goes_first():
    """Nobody knows then what the cards hold."""
    assert unloads([loaded(1), loaded(0)], [loaded(0), loaded(1)], ()).order[0].entry == 0


def test_many_residents_are_ordered_without_trying_every_order(monkeypatch):
    """Eight of them have 40,320 orders."""
    counted = []
    chance = module._Orders.chance
    monkeypatch.setattr(module._Orders, "chance", lambda *args: counted.append(1) or chance(*args))
    residents = [loaded(entry, 1, free_gib=23 - entry) for entry in range(8)]
    assert order_of(residents, residents) == list(range(8))
    assert len(counted) < 300


def hides_s(residents, load_gib, load_s, *, count=1, going=None):
    """How many seconds of stall a load at once would cost after these were unloaded."""
    going = residents if going is None else going
    return unloads(going, residents, cards_with(residents, count), int(load_gib * (1 << 30))).hides_s(load_s)


def test_a_load_at_once_hides_the_memory_that_ollama_looks_for():
    """Observed: a load that takes 25 to 100 % of what was freed, within the first tick, stalls Ollama for 5 s."""
    assert hides_s([loaded(0, 10)], 6, load_s=1) == pytest.approx(4)


@pytest.mark.parametrize("load_gib", [1, 15], ids=["little", "more than was freed"])
def test_a_load_that_takes_little_or_more_than_was_freed_hides_nothing(load_gib):
    """The first leaves enough to see; with the second less is free than before, which also ends the wait."""
    assert hides_s([loaded(0, 10)], load_gib, load_s=1) == 0


def test_a_stall_costs_nothing_once_the_load_has_taken_as_long():
    """Until the load has ended nothing is to be unloaded, and that is all that a stall holds up."""
    assert hides_s([loaded(0, 10)], 6, load_s=5) == 0


def test_beside_residents_that_stay_a_load_hides_nothing():
    """Their figures do not change, so the wait ends or stalls whatever is loaded."""
    first, stays = loaded(0), loaded(1, free_gib=19)
    assert hides_s([first, stays], 3, load_s=1, going=[first]) == 0


def test_beside_an_empty_card_a_load_may_hide_what_was_freed_on_another():
    """Ollama queries all cards then, and adds them up."""
    first, stays = loaded(0, 10), loaded(1, 6, free_gib=13)
    assert hides_s([first, stays], 6, load_s=1, count=2, going=[first]) > 0


def test_without_a_probe_a_load_always_pauses():
    """Nobody knows then what a load would hide, or whether memory is back at all."""
    assert unloads([loaded(0)], [loaded(0)], (), 1 << 30).hides_s(100) == math.inf
