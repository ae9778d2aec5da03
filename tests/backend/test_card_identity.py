"""Which cards of a probe are Ollama's, and by which numbers."""

from dataclasses import replace

import pytest

from router.backend.card_identity import CardNumbers
from tests.core.facts import gpu_of

CARDS = (gpu_of(0, 24), gpu_of(1, 12), gpu_of(2, 8))
MIG = (replace(gpu_of(0, 10), uuid="MIG-a1"), replace(gpu_of(1, 10), uuid="MIG-a2"))


def taken(gpus, cards=CARDS):
    """Return numbers that have taken over a reading."""
    numbers = CardNumbers(gpus)
    numbers.take(cards)
    return numbers


def uuids(cards):
    return None if cards is None else [(gpu.index, gpu.uuid) for gpu in cards]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("auto", ["GPU-0", "GPU-1", "GPU-2"]),
        ((2, 0), ["GPU-2", "GPU-0"]),
        (("2", " 0 "), ["GPU-2", "GPU-0"]),
        (("GPU-1", 0), ["GPU-1", "GPU-0"]),
        (("gpu-1",), ["GPU-1"]),
        ((1, "GPU-1"), ["GPU-1"]),
    ],
)
def test_cards_have_the_order_of_the_list(gpus, expected):
    """Indexes of the probe, UUIDs in any case, and each card once."""
    numbers = taken(gpus)
    assert uuids(numbers.numbered(CARDS)) == list(enumerate(expected))
    assert numbers.unmatched(CARDS) == ""


@pytest.mark.parametrize("gpus", [("MIG-a2",), ("mig-A2",), (1,)])
def test_instances_of_a_divided_card_are_cards(gpus):
    """By their UUIDs or their place."""
    assert uuids(taken(gpus, MIG).numbered(MIG)) == [(0, "MIG-a2")]


@pytest.mark.parametrize(
    "gpus", [("MIG-a",), ("GPU-",), ("MIG-",), ("GPU-9",), (3,), ("3",), (0, "GPU-x"), ("GPU",), ("",)]
)
@pytest.mark.parametrize("cards", [(), CARDS, MIG])
def test_an_entry_that_names_no_card_or_several_is_unknown_memory(gpus, cards):
    """Not a machine without cards; the message has those that are there."""
    numbers = taken(gpus, cards)
    assert numbers.numbered(cards) is None
    assert all(gpu.uuid in numbers.unmatched(cards) for gpu in cards)


def test_the_start_of_a_uuid_names_its_card():
    """As in CUDA_VISIBLE_DEVICES, if no other card begins so."""
    cards = (replace(gpu_of(0), uuid="GPU-ab12-34"), replace(gpu_of(1), uuid="GPU-ab77-56"))
    assert uuids(taken(("GPU-ab7",), cards).numbered(cards)) == [(0, "GPU-ab77-56")]
    assert taken(("GPU-ab",), cards).numbered(cards) is None


@pytest.mark.parametrize("gpus", ["auto", (0, 1, 2)])
def test_a_card_that_has_gone_keeps_its_number_without_memory(gpus):
    """The others keep theirs, also where the probe counts again; with none left, memory is unknown."""
    numbers = taken(gpus)
    left = (replace(CARDS[1], index=0), replace(CARDS[2], index=1))
    assert not numbers.take(left)
    found = numbers.numbered(left)
    assert uuids(found) == [(0, "GPU-0"), (1, "GPU-1"), (2, "GPU-2")]
    assert [gpu.total_bytes > 0 for gpu in found] == [False, True, True]
    assert (found[0].free_bytes, [gpu.uuid for gpu in numbers.gone(left)]) == (0, ["GPU-0"])
    assert numbers.numbered(()) is None
    assert uuids(numbers.numbered(CARDS)) == [(0, "GPU-0"), (1, "GPU-1"), (2, "GPU-2")]


def test_a_machine_without_cards_is_not_one_whose_cards_have_gone():
    """The first reading tells them apart."""
    assert taken("auto", ()).numbered(()) == ()


def test_a_new_card_voids_what_was_learned():
    """Ollama may count it among the others."""
    numbers = taken("auto", CARDS[:2])
    numbers.exchange(0, 1)
    assert numbers.take(CARDS)
    assert uuids(numbers.numbered(CARDS)) == [(0, "GPU-0"), (1, "GPU-1"), (2, "GPU-2")]


def test_a_card_that_comes_back_under_its_former_name_is_seen_again():
    """An exporter that says another UUID for a while, or none, does not leave memory unknown from then on."""
    numbers = taken("auto", CARDS[:1])
    odd = (replace(CARDS[0], uuid="gpu-0"),)
    for gpus in (odd, CARDS[:1], odd):
        assert numbers.take(gpus)
        assert uuids(numbers.numbered(gpus)) == [(0, gpus[0].uuid)]


def test_names_of_cards_that_change_with_each_reading_take_no_memory():
    """Only those are kept that count now."""
    numbers = taken("auto", CARDS[:1])
    for count in range(100):
        numbers.take((replace(CARDS[0], uuid=f"gpu-{count}"),))
    assert [gpu.uuid for gpu in numbers.known()] == ["gpu-99"]
    assert len(numbers._known) == 1


def test_of_cards_that_are_too_many_the_largest_unproven_are_tried_first():
    """What would fit on one of Ollama's cards is not refused; a card that carried a model keeps its number."""
    cards = (gpu_of(0, 8), gpu_of(1, 12), gpu_of(2, 24))
    numbers = taken("auto", cards)
    before = numbers.limit(2, {"GPU-0"}, {"GPU-0"})
    assert uuids(numbers.numbered(cards)) == [(0, "GPU-0"), (1, "GPU-2")]
    assert [gpu.uuid for gpu in numbers.hidden] == ["GPU-1"]
    numbers.exchange(1, 2)
    assert uuids(numbers.numbered(cards)) == [(0, "GPU-0"), (1, "GPU-1")]
    numbers.restore(before)
    assert uuids(numbers.numbered(cards)) == [(0, "GPU-0"), (1, "GPU-1"), (2, "GPU-2")]
    assert numbers.hidden == ()


def test_of_cards_that_are_too_many_those_that_carried_a_model_come_first():
    """Ollama sees them, by whatever number."""
    numbers = taken("auto")
    numbers.limit(1, set(), {"GPU-2"})
    assert uuids(numbers.numbered(CARDS)) == [(0, "GPU-2")]
    assert [numbers.is_hidden(number) for number in range(3)] == [False, True, True]
