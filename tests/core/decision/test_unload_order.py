"""Which resident is unloaded first."""

from dataclasses import replace

from router.core.decision.unload_order import unload_order
from tests.core.facts import facts_of, resident_of

OLD, MIDDLE, YOUNG = (
    resident_of(facts_of(f"m{order}:8b", 8), held_gib=4, card=card, order=order)
    for order, card in ((1, 0), (2, 0), (3, 1))
)


def test_where_nothing_stays_the_oldest_goes_first():
    """Its memory is seen at once; the other way round Ollama waits for five seconds."""
    assert unload_order([MIDDLE, OLD], []) == [OLD, MIDDLE]


def test_beside_one_that_stays_the_youngest_goes_first():
    """What stays must have correct figures."""
    youngest = replace(YOUNG, held_bytes={0: 4 << 30})
    assert unload_order([OLD, youngest], [MIDDLE]) == [youngest, OLD]


def test_those_beside_one_that_stays_go_last():
    """The load may begin while Ollama waits for the memory of the last one."""
    assert unload_order([OLD, YOUNG], [MIDDLE]) == [YOUNG, OLD]
    assert unload_order([YOUNG, OLD], [replace(MIDDLE, held_bytes={1: 1})]) == [OLD, YOUNG]


def test_one_that_stays_on_another_card_does_not_count():
    """Each card has its own figures."""
    assert unload_order([MIDDLE, OLD], [YOUNG]) == [OLD, MIDDLE]


def test_one_that_stays_nobody_knows_where_counts():
    """Without a probe it may be on the same card."""
    unmeasured = resident_of(facts_of("other:8b", 8), held_gib=0, order=4)
    assert unload_order([MIDDLE, OLD], [unmeasured]) == [MIDDLE, OLD]
