"""Placement against recorded decisions of the real llama.cpp, and the largest context that fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_simulator.recorded.plans import Recordings, cards_of, is_whole, options_of
from router.core.memory.fit_target import fit_target_bytes, version_of
from router.core.memory.footprint import MemoryOptions, footprint
from router.core.memory.placement import Card, max_num_ctx, place
from router.core.ollama.model import ModelFacts
from router.core.units import GIB, MIB

RECORDED = Recordings(Path(__file__).parents[2] / "data" / "fit")
LLAMA_70B = RECORDED.facts["llama3.3-70b", "Q4_K_M"]
LLAMA_8B = RECORDED.facts["llama3.1-8b", "Q4_K_M"]
MOE = RECORDED.facts["qwen3-30b-a3b", "Q4_K_M"]


def card(gib: float, index: int = 0, context_mib: int = 0) -> Card:
    """Return a card with `gib` GiB free and llama.cpp's default margin."""
    return Card(index, int(gib * GIB), context_mib * MIB)


def test_every_recorded_decision_on_whole_cards_is_right() -> None:
    """With no safety at all, on one card and on several."""
    for row in filter(is_whole, RECORDED.decisions):
        facts = RECORDED.facts[row["model"], row["quant"]]
        found = place(facts, options_of(row), cards_of(row), backend="plain", safety_bytes=0)
        assert found.fits == (row["verdict"] == "full"), row


def test_the_default_safety_is_never_optimistic() -> None:
    """Not even for cards that are exactly at the limit."""
    for row in RECORDED.decisions:
        facts = RECORDED.facts[row["model"], row["quant"]]
        if place(facts, options_of(row), cards_of(row), backend="plain").fits:
            assert row["verdict"] == "full", row


def test_one_card_needs_footprint_context_margin_and_safety() -> None:
    """To the byte, and one byte less does not fit."""
    options = MemoryOptions(8192)
    known = footprint(LLAMA_8B, options)
    need = known.need_bytes + 300 * MIB + GIB + known.safety_bytes
    fitting = place(LLAMA_8B, options, [Card(0, need, 300 * MIB)])
    assert fitting.fits
    assert (fitting.need_bytes, fitting.short_bytes) == (need, 0)
    assert fitting.expected_bytes == known.need_bytes + 300 * MIB
    short = place(LLAMA_8B, options, [Card(0, need - 1, 300 * MIB)])
    assert not short.fits
    assert short.short_bytes == 1


def test_no_card_fits_nothing() -> None:
    """A machine without GPUs has nothing to place on."""
    assert not place(LLAMA_8B, MemoryOptions(4096), []).fits
    assert max_num_ctx(LLAMA_8B, MemoryOptions(4096), []) == 0


def test_layers_are_distributed_in_proportion_to_free_memory() -> None:
    """Every layer and the output have a card, and the bigger card has more of them."""
    found = place(LLAMA_70B, MemoryOptions(8192), [card(48), card(24, 1)])
    assert found.fits
    assert [device.layers for device in found.devices] == [54, 27]


def test_a_dense_model_is_filled_again_from_the_back() -> None:
    """In proportion the small card falls short; filled from the back it takes what fits and the big one the rest."""
    options = MemoryOptions(32768, num_batch=2048)
    proportional = place(LLAMA_70B, options, [card(48), card(14, 1)], safety_bytes=0)
    assert proportional.fits
    assert sum(device.layers for device in proportional.devices) == 81
    assert not place(LLAMA_70B, options, [card(40), card(10, 1)], safety_bytes=0).fits


def test_a_big_last_card_may_take_everything() -> None:
    """Then the first card, too small even for its share of the inputs, holds nothing."""
    found = place(LLAMA_8B, MemoryOptions(8192), [card(1.1), card(24, 1)], safety_bytes=0)
    assert found.fits
    assert [device.layers for device in found.devices] == [0, 33]


def test_a_mixture_of_experts_is_not_filled_again() -> None:
    """llama.cpp moves its experts to main memory instead."""
    need = place(MOE, MemoryOptions(8192), [card(100)], safety_bytes=0).need_bytes
    total = need / GIB + 1.6
    assert not place(MOE, MemoryOptions(8192), [card(total - 2), card(2, 1)], safety_bytes=0).fits


def test_a_residual_is_spread_over_the_cards() -> None:
    """It raises each card's need by its share, and the sum by about the residual."""
    options, cards = MemoryOptions(8192), [card(48), card(48, 1)]
    plain, learned = (place(LLAMA_70B, options, cards, residual_bytes=extra) for extra in (0, 1000 * MIB))
    raised = [
        after.need_bytes - before.need_bytes for before, after in zip(plain.devices, learned.devices, strict=True)
    ]
    assert all(450 * MIB < more < 550 * MIB for more in raised)
    assert place(LLAMA_70B, options, cards[:1], residual_bytes=1000 * MIB).need_bytes > (
        place(LLAMA_70B, options, cards[:1]).need_bytes + 999 * MIB
    )


def test_without_tensors_layers_are_taken_as_equal() -> None:
    """A split can still be planned, on the safe side."""
    bare = ModelFacts("x", "d", 8 * GIB, parameter_size="8.0B")
    found = place(bare, MemoryOptions(4096), [card(24), card(24, 1)])
    assert found.fits
    assert sum(device.layers for device in found.devices) == 33
    assert found.expected_bytes > 8 * GIB


def test_max_num_ctx_is_the_last_step_that_fits() -> None:
    """One step more does not; a bigger card ends at the model's own maximum."""
    options = MemoryOptions(4096)
    most = max_num_ctx(LLAMA_8B, options, [card(12)], step=2048)
    assert most % 2048 == 0
    assert place(LLAMA_8B, MemoryOptions(most), [card(12)]).fits
    assert not place(LLAMA_8B, MemoryOptions(most + 2048), [card(12)]).fits
    assert max_num_ctx(LLAMA_8B, options, [card(80)]) == 131072
    assert max_num_ctx(LLAMA_70B, options, [card(24)]) == 0
    assert max_num_ctx(ModelFacts("x", "d", GIB, parameter_size="1B"), options, [card(1000)]) == 131072


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("0.31.2", (0, 31, 2)), ("v0.30.0-rc1", (0, 30, 0)), ("0.0.0", (999, 0, 0)), ("nightly", (999, 0, 0))],
)
def test_versions_that_cannot_be_parsed_are_the_newest(version: str, numbers: tuple[int, ...]) -> None:
    """A development build follows the newest rules."""
    assert version_of(version) == numbers


def test_fit_target_depends_on_the_version() -> None:
    """457 MiB before 0.30, 1 GiB since, the projector added from 0.31.2; a target that was set is left alone."""
    vision = ModelFacts("x", "d", 3 * GIB, projector={"general.architecture": "clip"}, tensors=LLAMA_8B.tensors[:1])
    projector = 3 * GIB - LLAMA_8B.tensors[0].shape[0] * LLAMA_8B.tensors[0].shape[1] * 144 // 256
    assert fit_target_bytes(vision, "0.12.3") == 457 * MIB
    assert fit_target_bytes(vision, "0.31.1") == GIB
    assert abs(fit_target_bytes(vision, "0.33.0") - GIB - projector) < GIB
    assert fit_target_bytes(vision, "0.33.0", base_bytes=2 * GIB) == 2 * GIB
    assert fit_target_bytes(LLAMA_8B, "0.33.0") == GIB
