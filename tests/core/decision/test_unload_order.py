"""Which resident is unloaded first."""

from dataclasses import replace

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
