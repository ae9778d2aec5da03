"""Who holds what of the cards: strangers, what was measured, and runners that died."""

import asyncio

from router.backend.guesses import dead
from router.core.units import GIB
from tests.backend.cards_alone import on_cards
from tests.backend.machine import BIG, SMALL, TWO_CARDS, row_of
from tests.core.facts import gpu_of

STALE_S = 10.0


def test_a_stranger_is_assumed_on_the_fullest_card():
    """What ps shows of it, and a context, as far as that card has it taken."""

    async def story(hand):
        await hand.read(card1=10)
        assert hand.cards.guess_held(row_of(SMALL)) == {1: SMALL.size_bytes + gpu_of().context_bytes}

    on_cards(story, TWO_CARDS)


def test_the_fullest_card_is_that_with_the_most_taken_less_what_is_known():
    """Not the one with the least free; nothing is assumed twice."""

    async def story(hand):
        await hand.read(card0=10, card1=20)
        (known,) = hand.loaded(SMALL)
        known.measured({1: 19 * GIB})
        assert hand.cards.guess_held(row_of(BIG)) == {1: GIB, 0: 10 * GIB}

    on_cards(story, (gpu_of(0, 24), gpu_of(1, 48)))


def test_a_stranger_that_one_card_cannot_hold_is_assumed_on_several():
    """The fullest first; never more than is taken there."""

    async def story(hand):
        await hand.read(card0=4, card1=16)
        held = hand.cards.guess_held(row_of(BIG))
        assert held == {1: 16 * GIB, 0: BIG.size_bytes - 16 * GIB + gpu_of().context_bytes}

    on_cards(story, TWO_CARDS)


def test_what_other_residents_hold_is_not_a_strangers():
    """On empty cards it holds nothing that anybody can see."""

    async def story(hand):
        await hand.read(card0=3)
        (known,) = hand.loaded(SMALL)
        known.measured({0: 3 * GIB})
        assert hand.cards.guess_held(row_of(BIG)) == {}

    on_cards(story)


def test_a_reading_corrects_what_was_assumed_but_not_what_was_measured():
    """ps is often there before the memory is seen; an unchanged guess voids no decision."""

    async def story(hand):
        await hand.read()
        late, measured = hand.loaded(SMALL, BIG)
        measured.measured({0: 5 * GIB})
        await hand.read(card0=8)
        hand.cards.reconcile()
        assert late.held_bytes == {0: SMALL.size_bytes + gpu_of().context_bytes}
        assert measured.held_bytes == {0: 5 * GIB}
        before = hand.epoch.number
        hand.cards.reconcile()
        assert hand.epoch.number == before

    on_cards(story)


def test_a_resident_whose_memory_is_free_again_is_dead():
    """ps shows a crashed runner until its next request."""

    async def story(hand):
        await hand.read(card0=20)
        (tracked,) = hand.loaded(BIG)
        tracked.measured({0: 20 * GIB})
        assert hand.cards.find_dead() == []
        await hand.read(card0=11)
        assert hand.cards.find_dead() == []
        await hand.read(card0=9)
        assert hand.cards.find_dead() == [tracked]
        tracked.spilled()
        assert hand.cards.find_dead() == []

    on_cards(story)


def test_of_two_residents_only_the_one_whose_memory_is_missing_is_dead():
    """The larger is tried first; what it explains is not missing twice."""

    async def story(hand):
        await hand.read(card0=18)
        small, big = hand.loaded(SMALL, BIG)
        small.measured({0: 4 * GIB})
        big.measured({0: 14 * GIB})
        await hand.read(card0=4)
        assert hand.cards.find_dead() == [big]
        await hand.read(card0=14)
        assert hand.cards.find_dead() == [small]
        await hand.read()
        assert hand.cards.find_dead() == [big, small]

    on_cards(story)


def test_what_has_died_is_not_missing_of_others_too():
    """Neither at the next reading, nor on the next card that it held."""

    async def story(hand):
        big, small = hand.loaded(BIG, SMALL)
        big.measured({0: 8 * GIB, 1: 9 * GIB})
        small.measured({1: 10 * GIB})
        await hand.read(card1=10)
        assert hand.cards.find_dead() == [big]
        big.spilled()
        assert hand.cards.find_dead() == []
        assert dead(hand.cards.gpus, (big, small)) == [big]

    on_cards(story, TWO_CARDS)


def test_a_resident_on_two_cards_dies_once():
    """Both cards show it."""

    async def story(hand):
        await hand.read()
        (tracked,) = hand.loaded(BIG)
        tracked.measured({0: 9 * GIB, 1: 9 * GIB})
        assert hand.cards.find_dead() == [tracked]

    on_cards(story, TWO_CARDS)


def test_what_was_only_assumed_is_never_declared_dead():
    """The assumption may be wrong; and without a reading nothing is missing."""

    async def story(hand):
        await hand.read(card0=20)
        (tracked,) = hand.loaded(BIG)
        await hand.read()
        assert hand.cards.find_dead() == []
        tracked.measured({0: 20 * GIB})
        await asyncio.sleep(STALE_S + 1)
        assert hand.cards.find_dead() == []

    on_cards(story)
