"""What fits a machine, term by term, and the cures for a model that is too big."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ollama_simulator.recorded.plans import Recordings
from router.core.advice.advise import advise, hardware_for, main_memory_bytes
from router.core.advice.examine import examine, groups
from router.core.memory.footprint import MemoryOptions, footprint
from router.core.memory.placement import Card
from router.core.ollama.model import ModelFacts
from router.core.units import GIB, MIB

RECORDED = Recordings(Path(__file__).parents[2] / "data" / "fit")


def named(model: str, quant: str, name: str) -> ModelFacts:
    """Return a recorded model under a name like Ollama's."""
    return replace(RECORDED.facts[model, quant], name=name)


ASKED = named("llama3.3-70b", "Q4_K_M", "llama3.3:70b")
SMALLER_QUANT = named("llama3.3-70b", "Q2_K", "llama3.3:70b-instruct-q2_K")
SIBLING = named("llama3.1-8b", "Q4_K_M", "llama3.1:8b")
INSTALLED = (ASKED, SMALLER_QUANT, SIBLING)
OPTIONS = MemoryOptions(8192)


def cards(*gib: float) -> tuple[Card, ...]:
    """Return cards with `gib` GiB free each."""
    return tuple(Card(at, int(size * GIB), 300 * MIB) for at, size in enumerate(gib))


@pytest.mark.parametrize("sizes", [(24.0,), (80.0,), (24.0, 24.0), (48.0, 12.0)])
def test_terms_of_each_device_add_up(sizes: tuple[float, ...]) -> None:
    """The need is the sum of the terms, and what the card has less the need is spare."""
    for facts in (ASKED, RECORDED.facts["gemma3-4b", "Q4_K_M"], RECORDED.facts["qwen3.5-4b", "Q4_K_M"]):
        for device in examine(facts, OPTIONS, cards(*sizes)).devices:
            parts = (device.weights_bytes, device.cache_bytes, device.compute_bytes, device.projector_bytes,
                     device.context_bytes, device.margin_bytes, device.safety_bytes)  # fmt: skip
            assert sum(parts) == device.need_bytes
            assert min(parts) >= 0
            assert device.spare_bytes == device.have_bytes - device.need_bytes


def test_the_weights_of_all_devices_are_those_of_the_footprint() -> None:
    """Nothing is lost in the split."""
    found = examine(ASKED, OPTIONS, cards(24, 24))
    assert found.fits
    assert found.is_split
    assert sum(device.weights_bytes for device in found.devices) == footprint(ASKED, OPTIONS).weights_bytes
    assert sum(device.cache_bytes for device in found.devices) == footprint(ASKED, OPTIONS).kv_bytes


def test_the_tightest_card_that_fits_is_taken() -> None:
    """A big card stays free; if none fits, the attempt that is short by least is shown."""
    found = examine(SIBLING, OPTIONS, cards(80, 24))
    assert [device.index for device in found.devices] == [1]
    assert found.largest_num_ctx == 131072
    assert examine(SIBLING, OPTIONS, cards(80, 24), largest=False).largest_num_ctx == 0
    assert not examine(ASKED, OPTIONS, cards(24)).fits


def test_a_machine_without_cards_fits_nothing() -> None:
    """No devices, no context."""
    found = examine(ASKED, OPTIONS, ())
    assert (found.fits, found.devices, found.largest_num_ctx, groups(())) == (False, (), 0, [])


def test_a_model_without_metadata_still_adds_up() -> None:
    """Coarse figures have a cache term too."""
    bare = ModelFacts("x", "d", 8 * GIB, parameter_size="8B")
    (device,) = examine(bare, OPTIONS, cards(24)).devices
    assert device.weights_bytes == 8 * GIB
    assert device.cache_bytes > 0


def test_a_model_that_fits_needs_no_cure() -> None:
    """No cures, no spill; hardware is listed nevertheless."""
    found = advise(SIBLING, INSTALLED, OPTIONS, cards(24))
    assert found.fit.fits
    assert found.cures == ()
    assert found.main_memory_bytes == 0
    assert found.hardware[0].size_gb == 24


def test_cures_of_a_70b_on_48_gib() -> None:
    """A shorter context first, then another quantization, settings, a file to fetch, a smaller member."""
    options = MemoryOptions(16384, num_batch=1024, num_parallel=2)
    found = advise(ASKED, INSTALLED, options, cards(47.5))
    kinds = [cure.kind for cure in found.cures]
    assert kinds == ["context", "variant", "slots", "cache", "quantization", "sibling"]
    assert found.cures[1].model == SMALLER_QUANT.name
    assert 8192 <= found.cures[0].num_ctx < 16384
    assert found.cures[4].is_estimate
    assert all(cure.need_bytes <= 47.5 * GIB for cure in found.cures)
    whole = [(one.cards, one.size_gb) for one in found.hardware if one.num_ctx == 16384]
    assert whole == [(1, 80), (2, 32)]
    assert found.main_memory_bytes > 0


def test_a_quantized_cache_or_a_smaller_batch_may_be_enough() -> None:
    """Each is offered where it alone makes the model fit."""
    facts = RECORDED.facts["qwen2.5-14b", "Q4_K_M"]
    need = footprint(facts, MemoryOptions(32768)).need_bytes
    batch = advise(facts, (), MemoryOptions(32768, num_batch=2048), (Card(0, need + 1600 * MIB, 300 * MIB),))
    assert [cure.kind for cure in batch.cures][:3] == ["context", "batch", "cache"]
    cache = advise(facts, (), MemoryOptions(32768), (Card(0, need, 300 * MIB),))
    assert [cure.kind for cure in cache.cures][:2] == ["context", "cache"]


def test_installed_models_that_do_not_fit_are_skipped() -> None:
    """The first that fits is named, not the first installed."""
    found = advise(ASKED, (SMALLER_QUANT, SIBLING), OPTIONS, cards(12))
    assert [cure.model for cure in found.cures] == [SIBLING.name]


def test_nothing_helps_on_a_tiny_card() -> None:
    """No cure, and the whole model in main memory, token embedding included."""
    options = MemoryOptions(8192, kv_type="q8_0")
    found = advise(ASKED, (), options, cards(2))
    assert found.cures == ()
    known = footprint(ASKED, options)
    assert known.need_bytes < main_memory_bytes(ASKED, options, cards(1)) < known.need_bytes + GIB


def test_no_hardware_is_named_if_two_big_cards_do_not_suffice() -> None:
    """A 671B model does not fit two cards of 96 GB; without a parameter count no file to fetch is guessed."""
    assert list(hardware_for(RECORDED.facts["deepseek-r1-671b", "Q4_K_M"], OPTIONS)) == []
    unknown = ModelFacts("x", "d", 80 * GIB)
    assert advise(unknown, (), OPTIONS, cards(24)).cures == ()


def test_a_context_that_the_router_would_not_choose_comes_after_the_quantizations() -> None:
    """Below its least one."""
    need = footprint(ASKED, MemoryOptions(4096)).need_bytes + 1500 * MIB
    found = advise(ASKED, INSTALLED, OPTIONS, (Card(0, need, 300 * MIB),))
    kinds = [cure.kind for cure in found.cures]
    assert 0 <= kinds.index("variant") < kinds.index("context")
    assert found.cures[kinds.index("context")].num_ctx < 8192


def test_an_installed_quantization_may_fit_with_less_context() -> None:
    """As the router would load it."""
    found = advise(ASKED, INSTALLED, MemoryOptions(32768), cards(33))
    (cure,) = (cure for cure in found.cures if cure.kind == "variant")
    assert 8192 <= cure.num_ctx < 32768
    assert f"with a context of {cure.num_ctx}" in cure.text


def test_a_smaller_card_is_named_if_less_context_is_enough() -> None:
    """Before the one for the whole context, with its own need."""
    found = [(one.cards, one.size_gb, one.num_ctx) for one in hardware_for(ASKED, MemoryOptions(32768))]
    assert [row[:2] for row in found] == [(1, 48), (1, 80), (2, 24), (2, 32)]
    assert [row[2] == 32768 for row in found] == [False, True, False, True]
    assert [one.size_gb for one in hardware_for(ASKED, OPTIONS)] == [48, 24]
