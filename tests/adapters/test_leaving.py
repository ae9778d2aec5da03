"""Facts of models that are gone are freed a few at a time, whoever was the last to read them."""

import gc

from router.adapters.leaving import AT_ONCE, LATER_S, SOON_S, Leaving
from tests.core.facts import bare_model

SIZE = 0.123456789
"""Of no model of any other test."""


def models(count):
    return [bare_model(f"leaving:{number}b", number, SIZE) for number in range(1, count + 1)]


def alive():
    return sum(one.size_bytes == int(SIZE * 1e9) for one in gc.get_objects() if type(one).__name__ == "ModelFacts")


def test_no_step_frees_more_than_a_few():
    """However many have left at once."""
    leaving = Leaving()
    leaving.add(models(3 * AT_ONCE))
    left = []
    while pause_s := leaving.let_go():
        left.append(alive())
        assert pause_s == SOON_S
    assert left == [2 * AT_ONCE, AT_ONCE]
    assert (alive(), len(leaving)) == (0, 0)


def test_what_others_hold_is_freed_here_when_they_have_let_it_go():
    """They never free it themselves, which would be all at once."""
    leaving, catalog = Leaving(), models(2 * AT_ONCE)
    leaving.add(catalog)
    leaving.add(catalog[:3])  # as often as anybody says so
    assert leaving.let_go() == SOON_S
    assert leaving.let_go() == LATER_S
    catalog.clear()
    assert alive() == 2 * AT_ONCE
    assert leaving.let_go() == SOON_S
    assert leaving.let_go() == 0.0
    assert alive() == 0


def test_nothing_that_left_needs_no_further_call():
    """The first call says so."""
    assert Leaving().let_go() == 0.0
