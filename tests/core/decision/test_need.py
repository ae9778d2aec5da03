"""What a load needs on the cards that it would run on."""

from dataclasses import replace

import pytest

from router.core.decision.need import MachineRules, memory_options, need_of
from router.core.memory.footprint import footprint
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
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
