"""What loads say about the cards is said once, and again when it is so again."""

from router.backend.card_identity import CardNumbers
from router.backend.load_check import BLIND_AFTER, LoadCheck
from router.telemetry import Notified, Telemetry
from tests.backend.machine import ONE_CARD, SMALL, TWO_CARDS, MemoryMachine
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
