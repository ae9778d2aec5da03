"""The cards of one backend: readings, lost readings, and cards that are only stated."""

import asyncio

import pytest

from router.adapters.gpu.reading import GpuProcess
from router.core.units import GIB
from router.errors import ProbeError
from router.telemetry import ProbeBack, ProbeLost
from tests.backend.cards_alone import on_cards
from tests.backend.machine import SMALL, TWO_CARDS, row_of
from tests.core.facts import gpu_of

STALE_S = 10.0


def test_before_the_first_reading_memory_is_unknown():
    """None is not the same as no card."""

    async def story(hand):
        assert hand.cards.gpus is None
        assert list(hand.cards.processes) == []
        assert hand.cards.guess_held(row_of(SMALL)) == {}

    on_cards(story)


def test_a_reading_voids_decisions_only_where_memory_has_changed():
    """An equal reading keeps what was decided, and keeps memory known."""

    async def story(hand):
        await hand.read()
        assert (hand.free(), hand.epoch.number) == ([24], 1)
        await asyncio.sleep(STALE_S - 1)
        await hand.read()
        await asyncio.sleep(STALE_S - 1)
        assert (hand.free(), hand.epoch.number) == ([24], 1)
        await hand.read(card0=4)
        assert (hand.free(), hand.epoch.number) == ([20], 2)

    on_cards(story)


def test_without_a_probe_nothing_is_read_or_measured():
    """Memory stays unknown."""

    async def story(hand):
        await hand.read()
        assert (hand.cards.gpus, hand.cards.is_measured, hand.machine.probe.reads) == (None, False, [])

    on_cards(story, has_probe=False)


def test_processes_are_those_of_the_last_reading():
    """What holds memory beside Ollama."""

    async def story(hand):
        hand.machine.probe.processes = (GpuProcess(0, 7, "game", GIB),)
        await hand.read()
        assert [process.name for process in hand.cards.processes] == ["game"]

    on_cards(story)


@pytest.mark.parametrize("gpus", [(1,), ("GPU-1",), (1, "GPU-1")])
def test_a_backend_sees_only_its_own_cards_numbered_as_its_ollama_numbers_them(gpus):
    """By index or UUID; the only card of an Ollama is its card 0."""

    async def story(hand):
        await hand.read(card1=4)
        assert [(gpu.index, gpu.uuid) for gpu in hand.cards.gpus] == [(0, "GPU-1")]
        assert hand.free() == [8]

    on_cards(story, (gpu_of(0, 24), gpu_of(1, 12)), gpus)


def test_a_backend_without_cards_needs_no_reading():
    """`gpus: none` is the operator's word."""

    async def story(hand):
        assert hand.cards.gpus == ()

    on_cards(story, gpus="none")


def test_a_lost_probe_leaves_the_last_reading_for_a_while_then_memory_is_unknown():
    """It is reported once, and once more when it is back."""

    async def story(hand):
        await hand.read(card0=4)
        hand.machine.probe.error = ProbeError("GPU is lost")
        for _ in range(3):
            await hand.read()
        assert hand.free() == [20]
        await asyncio.sleep(STALE_S + 0.1)
        assert hand.cards.gpus is None
        hand.machine.probe.error = None
        for _ in range(2):
            await hand.read()
        assert hand.free() == [24]
        assert [type(event) for event in hand.heard.events] == [ProbeLost, ProbeBack]
        assert hand.heard.events[0] == ProbeLost("memory", "GPU is lost")

    on_cards(story)


def test_stated_memory_is_less_what_residents_are_booked_with():
    """Never below nothing."""

    async def story(hand):
        await hand.read()
        assert not hand.cards.is_measured
        (tracked,) = hand.loaded(SMALL)
        hand.residents.assume(tracked, {0: 20 * GIB})
        assert hand.free() == [4]
        hand.residents.assume(tracked, {0: 30 * GIB})
        assert hand.free() == [0]

    on_cards(story, is_live=False)


def test_on_stated_cards_a_stranger_is_booked_on_the_roomiest_with_a_context():
    """Nothing shows where it is."""

    async def story(hand):
        await hand.read()
        assert hand.cards.guess_held(row_of(SMALL)) == {1: SMALL.size_bytes + gpu_of().context_bytes}

    on_cards(story, (gpu_of(0, 12), gpu_of(1, 24)), is_live=False)


def test_on_stated_cards_a_load_is_booked_on_the_cards_of_its_plan():
    """In equal parts, each with a context of the driver."""

    async def story(hand):
        await hand.read()
        context = gpu_of().context_bytes
        assert hand.cards.assumed_on(row_of(SMALL), (1,)) == {1: SMALL.size_bytes + context}
        half = SMALL.size_bytes // 2 + context
        assert hand.cards.assumed_on(row_of(SMALL), (0, 1)) == {0: half, 1: half}
        assert hand.cards.assumed_on(row_of(SMALL), (7,)) == {7: SMALL.size_bytes}

    on_cards(story, TWO_CARDS, is_live=False)


def test_on_stated_cards_a_reading_changes_no_booking():
    """It says nothing new."""

    async def story(hand):
        await hand.read()
        (tracked,) = hand.loaded(SMALL)
        hand.residents.assume(tracked, {0: GIB})
        hand.cards.reconcile()
        assert tracked.held_bytes == {0: GIB}

    on_cards(story, is_live=False)
