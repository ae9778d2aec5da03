"""What a load needs on the cards that it would run on."""

from dataclasses import replace

import pytest

from router.core.decision.need import MachineRules, memory_options, need_of
from router.core.learning.observation import Observation
from router.core.learning.residuals import Learned
from router.core.memory.footprint import footprint
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB, MIB
from tests.core.facts import facts_of, gpu_of

NEW = facts_of("new:9b", 9)
OPTIONS = LoadOptions(num_ctx=32768, num_batch=512)


@pytest.mark.parametrize(
    ("setting", "compute", "has_flash"),
    [
        ("auto", "8.6", True),
        ("auto", "7.0", True),
        ("auto", "7.2", False),
        ("auto", "5.2", False),
        ("auto", "", True),
        ("auto", "gfx1100", True),
        ("on", "5.2", True),
        ("off", "8.6", False),
    ],
)
def test_flash_attention_is_counted_as_ollama_decides_it_for_the_card(setting, compute, has_flash):
    """As it is set; else off on cards that cannot: then the whole KQ matrix is in the compute buffer."""
    settings = ServerSettings(flash_attention=setting)
    card = replace(gpu_of(), compute=compute)
    asked = replace(memory_options(NEW, OPTIONS, settings), flash_attention=has_flash)
    placed = need_of(NEW, OPTIONS, MachineRules(settings)).on((card,))
    assert placed.expected_bytes == footprint(NEW, asked).need_bytes + card.context_bytes


def test_one_old_card_turns_flash_attention_off_for_a_split():
    """All cards of the runner must support it; alone the newer card has it."""
    new, old = gpu_of(0), replace(gpu_of(1), compute="5.2")
    need = need_of(NEW, OPTIONS, MachineRules())
    assert need.on((new,)).expected_bytes < need.on((replace(new, compute="5.2"),)).expected_bytes
    both = need.on((new, replace(old, compute="8.6"))).expected_bytes
    assert both < need.on((new, old)).expected_bytes


@pytest.mark.parametrize(("version", "is_old"), [("0.24.0", True), ("0.29.9", True), ("0.30.0", False), ("", False)])
def test_before_llama_cpps_fit_a_model_that_was_never_loaded_keeps_a_wider_safety(version, is_old):
    """Ollama's own engine takes more than computed for some models; what is configured or learned counts instead."""
    settings = ServerSettings(version=version)
    known = footprint(NEW, memory_options(NEW, OPTIONS, settings))
    margin = (457 if is_old else 1024) * MIB
    need = need_of(NEW, OPTIONS, MachineRules(settings)).need_bytes(gpu_of())
    safety = need - known.need_bytes - gpu_of().context_bytes - margin
    assert safety == (max(512 * MIB, known.need_bytes * 8 // 100) if is_old else known.safety_bytes)
    configured = need_of(NEW, OPTIONS, MachineRules(settings, safety_bytes=7)).need_bytes(gpu_of())
    assert configured == known.need_bytes + gpu_of().context_bytes + margin + 7


def test_a_load_that_was_as_computed_lowers_the_safety_of_one_card_and_not_that_of_a_split():
    """Layers are shared out otherwise on cards with other free memory, by up to a layer."""
    facts = facts_of("split:30b", 20)
    seen = [
        Observation(facts.weights, 8192, 512, 1, "f16", ("card",) * cards, "0.33.0", 22 * GIB, 22 * GIB, spilled=False,
                    free_before_bytes=40 * GIB, at_s=1000.0, size_bytes=20 * GIB, size_vram_bytes=20 * GIB)
        for cards in (1, 2)
    ]  # fmt: skip
    fresh, learned = (
        MachineRules(ServerSettings(version="0.33.0"), learned=Learned.of(loads), now_s=1010.0) for loads in ((), seen)
    )

    def needs(rules, cards):
        group = tuple(gpu_of(index) for index in range(cards))
        return [
            one.need_bytes for one in need_of(facts, LoadOptions(num_ctx=8192, num_batch=512), rules).on(group).devices
        ]

    assert needs(learned, 1) < needs(fresh, 1)
    assert needs(learned, 2) == needs(fresh, 2)
