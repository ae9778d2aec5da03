"""What others leave of each card, over time and during a switch."""

from router.backend.floors import Floors
from router.core.units import GIB
from tests.core.facts import gpu_of


def test_when_cards_get_other_numbers_during_a_switch_the_reading_before_it_is_not_used_for_them():
    """It would say of one card what was free on another."""
    floors = Floors(60.0)
    gpus = gpu_of(0, free_gib=20), gpu_of(1, free_gib=4)
    floors.hold({0: 4 * GIB, 1: 20 * GIB})
    floors.clear()
    assert floors.undisturbed(gpus, lambda _card: 0) == gpus
