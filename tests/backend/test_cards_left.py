"""What others leave of the cards, memory on its way back, and what loads have taught."""

import asyncio

from router.backend.capacity import CEILING_S
from router.backend.cards import NO_GPU_S
from router.core.units import GIB, MIB
from router.errors import ProbeError
from tests.backend.cards_alone import on_cards
from tests.backend.machine import BIG, SMALL

HISTORY_S, MEMORY_S = 960.0, 10.0


def least(hand):
    """Return the least that others have left of each card, as far back as is known."""
    return {card: min(left for _, left in steps) for card, steps in hand.cards.left_bytes().items()}


def test_the_floor_is_the_least_that_others_have_left():
    """What residents hold counts as left: it is ours to give."""

    async def story(hand):
        for foreign in (4, 10, 2):
            await hand.read(card0=foreign)
            hand.cards.note_floor(is_switching=False)
        assert least(hand) == {0: 14 * GIB}
        (tracked,) = hand.loaded(SMALL)
        tracked.measured({0: 5 * GIB})
        await hand.read(card0=20)
        hand.cards.note_floor(is_switching=False)
        assert least(hand) == {0: 9 * GIB}

    on_cards(story)


def test_a_floor_is_forgotten_in_time():
    """No return to a bigger variant looks further back than sixteen times `max_load_wait_s`."""

    async def story(hand):
        assert least(hand) == {}
        await hand.read(card0=10)
        hand.cards.note_floor(is_switching=False)
        await asyncio.sleep(HISTORY_S - 1)
        await hand.read()
        hand.cards.note_floor(is_switching=False)
        assert least(hand) == {0: 14 * GIB}
        await asyncio.sleep(2)
        hand.cards.note_floor(is_switching=False)
        assert least(hand) == {0: 24 * GIB}

    on_cards(story)


def test_what_others_leave_is_known_by_age():
    """In steps: how little was left at least since when."""

    async def story(hand):
        for foreign in (10, 2, 4, 4):
            await hand.read(card0=foreign)
            hand.cards.note_floor(is_switching=False)
            await asyncio.sleep(1)
        assert hand.cards.left_bytes() == {0: ((4.0, 14 * GIB), (1.0, 20 * GIB))}

    on_cards(story)


def test_during_a_switch_what_a_load_takes_is_not_taken_for_other_programs():
    """What others left before it counts, less what the residents hold."""

    async def story(hand):
        assert hand.cards.undisturbed is None
        await hand.read(card0=2)
        hand.cards.note_floor(is_switching=False)
        (tracked,) = hand.loaded(SMALL)
        tracked.measured({0: 5 * GIB})
        await hand.read(card0=20)
        assert [gpu.free_bytes for gpu in hand.cards.gpus] == [4 * GIB]
        assert [gpu.free_bytes for gpu in hand.cards.undisturbed] == [17 * GIB]

    on_cards(story)


def test_decisions_during_a_switch_go_by_the_reading_that_it_was_decided_by():
    """Else the requests that wait for it could want something else as soon as it has begun, and back at its end."""

    async def story(hand):
        await hand.read(card0=2)
        hand.cards.note_floor(is_switching=False)
        await hand.read(card0=9)
        hand.cards.hold_floor(is_switching=True)
        await hand.read(card0=20)
        assert [gpu.free_bytes for gpu in hand.cards.undisturbed] == [15 * GIB]
        hand.cards.hold_floor(is_switching=False)
        assert [gpu.free_bytes for gpu in hand.cards.undisturbed] == [22 * GIB]

    on_cards(story)


def test_while_memory_moves_no_floor_is_noted():
    """During a switch, and while what a resident has given back is not seen yet."""

    async def story(hand):
        await hand.read()
        hand.cards.note_floor(is_switching=False)
        await hand.read(card0=20)
        hand.cards.note_floor(is_switching=True)
        (tracked,) = hand.loaded(BIG)
        tracked.measured({0: 20 * GIB})
        hand.loaded()
        hand.cards.note_floor(is_switching=False)
        assert least(hand) == {0: 24 * GIB}

    on_cards(story)


def test_without_a_reading_no_floor_is_noted():
    """Unknown is not nothing."""

    async def story(hand):
        hand.cards.note_floor(is_switching=False)
        assert least(hand) == {}

    on_cards(story)


def gone(hand, *, is_measured=True):
    """Let a resident that held 20 GiB leave, while the probe still shows them as taken."""
    (tracked,) = hand.loaded(BIG)
    if is_measured:
        tracked.measured({0: 20 * GIB})
    hand.cards.note_floor(is_switching=False)
    hand.loaded()


def test_memory_of_a_model_that_has_gone_is_awaited_until_it_is_seen():
    """Nine tenths of it are enough."""

    async def story(hand):
        await hand.read(card0=20)
        gone(hand)
        assert hand.cards.is_memory_returning()
        await hand.read(card0=2.1)
        assert hand.cards.is_memory_returning()
        await hand.read(card0=1.9)
        assert not hand.cards.is_memory_returning()
        await hand.read(card0=20)
        assert not hand.cards.is_memory_returning()

    on_cards(story)


def test_memory_of_a_model_that_has_gone_is_awaited_for_a_limited_time():
    """Somebody else may have taken it."""

    async def story(hand):
        await hand.read(card0=20)
        gone(hand)
        await asyncio.sleep(MEMORY_S - 0.5)
        assert hand.cards.is_memory_returning()
        await asyncio.sleep(0.6)
        assert not hand.cards.is_memory_returning()

    on_cards(story)


def test_memory_is_not_awaited_once_an_unload_of_ours_has_waited_for_it():
    """Or where nobody knows how much it was."""

    async def story(hand):
        await hand.read(card0=20)
        gone(hand)
        hand.cards.memory_is_back()
        assert not hand.cards.is_memory_returning()
        gone(hand, is_measured=False)
        assert not hand.cards.is_memory_returning()

    on_cards(story)


def test_memory_is_not_awaited_once_readings_are_lost():
    """Nobody would see it."""

    async def story(hand):
        await hand.read(card0=20)
        gone(hand)
        hand.machine.probe.error = ProbeError("lost")
        await asyncio.sleep(2.9)
        assert hand.cards.is_memory_returning()
        await asyncio.sleep(0.2)
        assert not hand.cards.is_memory_returning()

    on_cards(story, options={"snapshot.stale_after_s": 3})


def test_memory_is_not_awaited_where_nobody_knows_how_much_there_was():
    """On stated cards, and before others' share was ever noted."""

    async def stated(hand):
        await hand.read()
        gone(hand)
        assert not hand.cards.is_memory_returning()

    async def no_history(hand):
        await hand.read(card0=20)
        (tracked,) = hand.loaded(BIG)
        tracked.measured({0: 20 * GIB})
        hand.loaded()
        assert not hand.cards.is_memory_returning()

    on_cards(stated, is_live=False)
    on_cards(no_history)


def test_a_machine_that_turned_out_to_have_no_gpu_is_tried_again_after_a_while():
    """Or at once when Ollama has restarted."""

    async def story(hand):
        hand.cards.mark_no_gpu()
        assert (hand.cards.gpus, hand.epoch.number) == ((), 1)
        await asyncio.sleep(NO_GPU_S - 0.1)
        assert hand.cards.gpus == ()
        await asyncio.sleep(0.2)
        assert hand.cards.gpus is None
        hand.cards.mark_no_gpu()
        hand.cards.retry_gpu()
        assert hand.cards.gpus is None

    on_cards(story, has_probe=False)


def test_a_ceiling_that_a_spill_has_taught_holds_for_a_while():
    """The newest counts."""

    async def story(hand):
        assert hand.cards.capacity.ceiling_bytes() is None
        hand.cards.capacity.note_ceiling(900 * MIB)
        hand.cards.capacity.note_ceiling(800 * MIB)
        assert (hand.cards.capacity.ceiling_bytes(), hand.epoch.number) == (800 * MIB, 2)
        await asyncio.sleep(CEILING_S - 0.1)
        assert hand.cards.capacity.ceiling_bytes() == 800 * MIB
        await asyncio.sleep(0.2)
        assert hand.cards.capacity.ceiling_bytes() is None

    on_cards(story, has_probe=False)


def test_while_the_probe_does_not_answer_what_the_cards_have_in_all_is_still_known():
    """As it was read last: nothing bigger is tried meanwhile. What a spill has taught may be less."""

    async def story(hand):
        assert hand.cards.capacity.ceiling_bytes() is None
        await hand.read(card0=4)
        hand.machine.probe.error = ProbeError("gone")
        await asyncio.sleep(60)
        await hand.cards.read(is_fresh=True)
        assert (hand.cards.gpus, hand.cards.capacity.ceiling_bytes()) == (None, 24 * GIB)
        hand.cards.capacity.note_ceiling(9 * GIB)
        assert hand.cards.capacity.ceiling_bytes() == 9 * GIB
        await asyncio.sleep(CEILING_S + 1)
        assert hand.cards.capacity.ceiling_bytes() == 24 * GIB
        hand.cards.forget()
        assert hand.cards.capacity.ceiling_bytes() is None

    on_cards(story)
