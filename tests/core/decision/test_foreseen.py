"""What Ollama would do instead of what a plan asks for, and what is free without some residents."""

from dataclasses import replace

from router.core.decision.foreseen import EVICTS, Books, free_without
from router.core.decision.snapshot import Snapshot
from router.core.ollama.model import ModelFacts
from router.core.units import GIB
from tests.core.facts import catalog_of, facts_of, gpu_of, resident_of

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


class Listed(dict[str, ModelFacts]):
    """A catalog that counts how often it was gone through."""

    rounds = 0

    def values(self):  # type: ignore[no-untyped-def]
        self.rounds += 1
        return super().values()


def test_the_models_of_residents_are_looked_up_in_the_catalog_once() -> None:
    """Thousands may be installed, and each variant's plans ask for each resident that would have to go."""
    small, copy, other = facts_of("small"), replace(facts_of("small"), name="copy"), facts_of("other")
    catalog = Listed(catalog_of(small, copy, other))
    gone = resident_of(facts_of("gone"), held_gib=1)
    books = Books.of(Snapshot(gpus=(gpu_of(),), residents=(SMALL, gone), catalog=catalog))
    assert [books.facts(weights) for weights in (SMALL.weights, gone.weights, other.weights)] == [small, None, None]
    assert books.facts(SMALL.weights) is small
    assert catalog.rounds == 1
