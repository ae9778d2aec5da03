"""What Ollama would do instead of what a plan asks for, and what is free without some residents."""

from router.core.decision.foreseen import EVICTS, Books, free_without
from router.core.decision.snapshot import Snapshot
from router.core.units import GIB
from tests.core.facts import facts_of, gpu_of, resident_of

SMALL = resident_of(facts_of("small"), held_gib=3)


def test_an_ollama_that_keeps_no_more_models_evicts_one_for_any_other() -> None:
    """Whatever the memory: the limit counts models."""
    books = Books.of(Snapshot(gpus=(gpu_of(),), residents=(SMALL,)))
    assert books.obstacle((), (0,), books.cleared(()), 1) == EVICTS
    assert books.obstacle((), (0,), books.cleared(()), 2) == ""
    assert books.obstacle((), (0,), books.cleared((SMALL,)), 1) == ""


def test_memory_on_a_card_that_is_not_there_any_more_is_free_on_no_other() -> None:
    """A card may fall off the bus while its models are still listed."""
    gone = resident_of(facts_of("gone"), held_gib=3, card=7)
    assert free_without((SMALL, gone), (gpu_of(free_gib=10),)) == (13 * GIB,)
