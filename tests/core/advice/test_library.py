"""What to pull: models of the public library that fit, with the memory that the router itself computes for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ollama_simulator.models.library import known_tags, real_library
from router.core.advice.library import MAX_PULLS, PUBLISHED, Published, pulls
from router.core.memory.footprint import MemoryOptions
from router.core.memory.placement import Card, place
from router.core.units import GIB, MIB
from tests.core.advice.test_advise import ASKED, SIBLING
from tests.core.facts import facts_of

KNOWN = {f"{model.name.model}:{model.name.tag}": model for model in real_library(known_tags()).models.values()}


def cards(*gib: float) -> tuple[Card, ...]:
    """Return CUDA cards with `gib` GiB free each."""
    return tuple(Card(at, int(size * GIB), 457 * MIB) for at, size in enumerate(gib))


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.name)
def test_the_table_is_what_the_router_computes(one: Published) -> None:
    """Within 2 %; parameters, context and capabilities are those of the model."""
    model = KNOWN[one.name]
    facts = model.sim.facts
    for num_ctx, mib in ((8192, one.mib_at_8192), (32768, one.mib_at_32768)):
        found = place(facts, MemoryOptions(num_ctx), cards(1000))
        assert mib == pytest.approx(found.need_bytes / MIB, rel=0.02)
    assert one.billions == pytest.approx(facts.parameter_count / 1e9, abs=0.1)
    assert (one.context_length, set(one.capabilities.split())) == (
        facts.context_length,
        set(model.capabilities) - {"thinking"},
    )


@pytest.mark.parametrize("gib", [3, 6, 8, 12, 16, 24, 32, 48, 80])
@pytest.mark.parametrize("num_ctx", [4096, 8192, 32768])
def test_what_is_to_be_pulled_fits(gib: float, num_ctx: int) -> None:
    """At the context that is named, which is the asked one or the router's least."""
    found = pulls(ASKED, (), MemoryOptions(num_ctx), cards(gib))
    assert len(found) <= MAX_PULLS
    for pull in found:
        assert place(KNOWN[pull.model].sim.facts, MemoryOptions(pull.num_ctx), cards(gib)).fits
        assert min(num_ctx, 8192) <= pull.num_ctx <= num_ctx
    assert found or gib < 4


def test_the_biggest_that_fit_come_first_and_one_of_the_series_is_among_them() -> None:
    """A 70B on 24 GB: no q2_K, which cannot fit."""
    found = pulls(ASKED, (), MemoryOptions(32768), cards(23.5))
    assert [pull.model for pull in found] == ["qwen3:32b", "qwen3:30b-a3b", "llama3.1:8b-instruct-q8_0"]
    assert [pull.is_series for pull in found] == [False, False, True]


def test_a_lower_quantization_of_the_model_itself_is_named_where_it_fits() -> None:
    """On 40 GB at a smaller context."""
    assert pulls(ASKED, (), MemoryOptions(8192), cards(39.5))[0].model == "llama3.3:70b-instruct-q3_K_M"


def test_what_is_installed_bigger_or_cannot_do_the_same_is_not_named() -> None:
    """Nor anything instead of an embedding model."""
    names = [pull.model for pull in pulls(ASKED, (SIBLING,), MemoryOptions(8192), cards(8))]
    assert "llama3.1:8b" not in names
    small = facts_of("llama3.1:8b", 16, capabilities=("completion", "vision"))
    assert [pull.model for pull in pulls(small, (), MemoryOptions(8192), cards(8))] == ["gemma3:4b"]
    assert pulls(facts_of("nomic", 30, capabilities=("embedding",)), (), MemoryOptions(8192), cards(24)) == ()


def test_two_cards_count_together_less_what_a_split_costs() -> None:
    """The biggest that fits both."""
    assert pulls(ASKED, (), MemoryOptions(8192), cards(18, 18))[0].model == "llama3.3:70b-instruct-q2_K"
    assert pulls(ASKED, (), MemoryOptions(8192), ()) == ()


def test_slots_multiply_the_cache() -> None:
    """Four of them leave less room."""
    one, four = (pulls(ASKED, (), MemoryOptions(16384, num_parallel=slots), cards(24))[0] for slots in (1, 4))
    assert (one.model, four.model) == ("qwen3:32b", "qwen3:30b-a3b")


def test_the_same_quantization_under_another_name_is_not_named() -> None:
    """It would need as much."""
    assert "llama3.3:70b" not in [
        pull.model
        for pull in pulls(replace(ASKED, name="llama3.3:70b-instruct-q4_K_M"), (), MemoryOptions(32768), cards(48))
    ]
