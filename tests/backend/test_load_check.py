"""What loads say about the cards is said once, and again when it is so again."""

from dataclasses import replace

from router.backend.card_identity import CardNumbers
from router.backend.load_check import BLIND_AFTER, LoadCheck
from router.core.decision.switching import Plan
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from router.telemetry import Notified, Telemetry
from tests.backend.machine import BIG, ONE_CARD, SMALL, TWO_CARDS, MemoryMachine, row_of
from tests.backend.scene import Heard, play


def check_of(cards):
    heard, numbers = Heard(), CardNumbers("auto")
    numbers.take(cards)
    return LoadCheck(numbers, Telemetry([heard]), "backends.local.gpus"), heard


def warnings(heard):
    return [event.message for event in heard.of(Notified) if event.level == "warning"]


def test_a_probe_that_turns_blind_a_second_time_is_said_a_second_time():
    """Each time once, however long it lasts."""

    async def story(scene):
        scene.machine.seen_share = 1.0
        check = scene.backend.cards.check
        for times in (1, 2):
            for _ in range(BLIND_AFTER + 1):
                check.note_unseen(ONE_CARD)
            assert [text.count("has not seen") for text in warnings(scene.heard)] == [1] * times
            await scene.make_resident(SMALL)
            assert not check.is_blind
            scene.machine.drop(SMALL.name)
            await scene.backend.world.refresh_fresh()

    play(story, MemoryMachine(SMALL))


def test_a_card_that_goes_a_second_time_is_said_a_second_time():
    """After it was there again."""
    check, heard = check_of(TWO_CARDS)
    for times in (1, 2):
        for _ in range(2):
            check.note_gone(TWO_CARDS[:1])
        assert len(warnings(heard)) == times
        check.note_gone(TWO_CARDS)
        assert check.notes() == []


def test_cards_that_two_split_loads_have_not_used_are_left_alone():
    """Ollama does not see them. A load that is whole does not count, and one that uses a card clears it."""
    plan = Plan(LoadOptions(num_ctx=8192), (), (), (0, 1), 30 * GIB, 48 * GIB, (15 * GIB, 15 * GIB), 30 * GIB)

    def readings(*taken_gib):
        after = (
            replace(gpu, free_bytes=gpu.free_bytes - int(gib * GIB))
            for gpu, gib in zip(TWO_CARDS, taken_gib, strict=True)
        )
        return TWO_CARDS, tuple(after)

    check, heard = check_of(TWO_CARDS)
    spilled = replace(row_of(BIG), size_bytes=30 * GIB, size_vram_bytes=20 * GIB)
    assert not check.compare(plan, spilled, *readings(21, 0))
    assert not check.compare(plan, spilled, *readings(10, 10))
    assert not check.compare(plan, spilled, *readings(21, 0))
    assert not check.compare(plan, replace(spilled, size_bytes=20 * GIB), *readings(21, 0))
    assert warnings(heard) == []
    assert check.compare(plan, spilled, *readings(21, 0))
    (text,) = warnings(heard)
    assert TWO_CARDS[1].uuid in text
    check.forget()
    assert not check.compare(plan, spilled, *readings(21, 0))
