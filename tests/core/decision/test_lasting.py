"""Which refusals no waiting can change, and what they say would help."""

import pytest

from router.core.decision.lasting import is_lasting, is_short_of_memory, lasting_refusal
from router.core.decision.policy import choose
from router.core.decision.snapshot import Snapshot
from router.core.decision.verdict import Rules
from router.core.payload.read import InferenceRequest
from tests.core.facts import catalog_of, chain_of, facts_of, gpu_of

HUGE, SMALL = facts_of("huge:70b", 40), facts_of("small:3b", 2)
SHORT = facts_of("short:3b", 2, context_length=4096)
CATALOG = catalog_of(HUGE, SMALL, SHORT)
BUSY_CARD, CARD = gpu_of(free_gib=1), gpu_of()


def refused(*models, gpus=(CARD,), **asked):
    """Whether the refusal of a chain of `models` is lasting, and its text."""
    chain = chain_of(*models)
    found = choose(InferenceRequest(models[0], **asked), chain, Snapshot(gpus, catalog=CATALOG), Rules())
    assert found.chosen is None
    return is_lasting(found, gpus), lasting_refusal(chain, found, gpus)


@pytest.mark.parametrize(
    ("models", "asked", "cure"),
    [
        (("huge:70b",), {}, "as `ollama-router advise huge:70b` names them"),
        (("gone:8b", "gone:3b"), {}, "`ollama pull gone:3b`"),
        (
            ("huge:70b", "gone:3b"),
            {},
            "`ollama pull gone:3b` or a variant that fits, as `ollama-router advise huge:70b` names them",
        ),
        (
            ("huge:70b", "short:3b"),
            {"num_ctx": 8192},
            "a num_ctx of at most 4096 or a variant that fits, as `ollama-router advise huge:70b` names them",
        ),
        (("huge:70b", "small:3b"), {"needs": frozenset({"tools"})}, "a variant in this chain that can do it"),
    ],
)
def test_what_no_wait_can_change_ends_with_what_would_help(models, asked, cure):
    """Too big for all cards together, not installed, or not able to."""
    is_final, text = refused(*models, **asked)
    assert is_final
    assert text.endswith(cure)


@pytest.mark.parametrize("gpus", [(BUSY_CARD,), None])
def test_what_memory_could_change_is_not_lasting(gpus):
    """Others may leave the card; and cards that nobody has seen can have any size."""
    if gpus is None:
        chain = chain_of("huge:70b")
        snapshot = Snapshot(None, catalog=CATALOG, ceiling_bytes=1 << 30)
        assert not is_lasting(choose(InferenceRequest("huge:70b"), chain, snapshot, Rules()), gpus)
        return
    assert not refused("small:3b", gpus=gpus)[0]
    assert not refused("huge:70b", "small:3b", gpus=gpus)[0]
    assert not refused("gone:8b", "small:3b", gpus=gpus)[0]


def test_a_context_that_makes_it_too_big_is_named():
    """With the weights alone there would be room."""
    is_final, text = refused("small:3b", num_ctx=131072, gpus=(gpu_of(total_gib=6, free_gib=5),))
    assert is_final
    assert "What helps: a num_ctx below 131072 or" in text


@pytest.mark.parametrize(
    ("models", "gpus", "is_short"),
    [
        (("big:32b", "small:3b"), (gpu_of(free_gib=8),), True),
        (("big:32b", "small:3b"), (CARD,), False),
        (("huge:70b", "small:3b"), (CARD,), False),
        (("gone:8b", "small:3b"), (gpu_of(free_gib=8),), False),
    ],
    ids=["others hold it", "it serves", "bigger than the card", "not installed"],
)
def test_a_variant_that_the_cards_could_hold_is_passed_over_for_want_of_memory(models, gpus, is_short):
    """Only then may memory that comes back change the choice."""
    catalog = catalog_of(HUGE, SMALL, facts_of("big:32b", 18))
    snapshot = Snapshot(gpus, catalog=catalog)
    assert (
        is_short_of_memory(choose(InferenceRequest(models[0]), chain_of(*models), snapshot, Rules()), gpus) is is_short
    )
