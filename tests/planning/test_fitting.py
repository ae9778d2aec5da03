"""What fits, counted apart from the router: known sizes, and what the simulated Ollama really does."""

from __future__ import annotations

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig
from router.core.units import GIB
from router.planning.fitting import first_fitting, least_num_ctx, place
from router.planning.stage import Load, stage

ONE = (CardSpec(),)
TWO = (CardSpec(name="CUDA0"), CardSpec(name="CUDA1", total_mib=12282))
CHAIN = ("qwen3:32b", "qwen3:14b", "qwen3:8b", "qwen3:4b")


@pytest.mark.parametrize(
    ("num_ctx", "foreign_gib", "best"),
    [
        (8192, 0, "qwen3:32b"),
        (32768, 0, "qwen3:14b"),
        (8192, 3, "qwen3:14b"),
        (8192, 14, "qwen3:8b"),
        (8192, 18, "qwen3:4b"),
        (8192, 23, None),
    ],
)
def test_the_first_variant_that_fits_depends_on_context_and_foreign_memory(
    num_ctx: int, foreign_gib: int, best: str | None
) -> None:
    """On 24 GB."""
    assert first_fitting(CHAIN, 10, num_ctx, ONE, (foreign_gib * GIB,)) == best


def test_a_request_without_a_context_needs_one_for_its_prompt_and_an_answer() -> None:
    """At least 8192 tokens; never more than the model can."""
    assert least_num_ctx("qwen3:32b", 100, None) == 8192
    assert least_num_ctx("qwen3:32b", 20_000, None) == 22_048
    assert least_num_ctx("qwen3:32b", 100, 4096) == 4096
    assert least_num_ctx("qwen3:32b", 100, 1_000_000) == 40_960


def test_a_model_takes_the_tightest_card_that_holds_it() -> None:
    """The big card stays free."""
    small = place("qwen3:4b", 8192, TWO, (0, 0), is_alone=True)
    large = place("qwen3:32b", 8192, TWO, (0, 0), is_alone=True)
    assert small is not None and small.cards == (1,)
    assert large is not None and large.cards == (0,)


def test_a_model_for_no_single_card_is_split_only_without_others() -> None:
    """Beside another model Ollama's choice of cards is not certain."""
    cards = (CardSpec(name="CUDA0"), CardSpec(name="CUDA1"))
    found = place("llama3.3:70b-instruct-q3_K_M", 8192, cards, (0, 0), is_alone=True)
    assert found is not None and found.cards == (0, 1)
    assert place("llama3.3:70b-instruct-q3_K_M", 8192, cards, (0, 0), is_alone=False) is None
    assert place("llama3.3:70b-instruct-q3_K_M", 8192, ONE, (0,), is_alone=True) is None


def test_beside_a_model_ollama_must_not_evict_it() -> None:
    """Ollama evicts others if more than 80 % of the free memory is needed, even if the model would fit."""
    taken = 9 * GIB
    assert place("gemma3:12b", 8192, ONE, (taken,), is_alone=True) is not None
    assert place("qwen3:14b", 16384, ONE, (12 * GIB,), is_alone=False) is None


def loaded(tag: str, num_ctx: int, foreign_mib: int) -> tuple[Load, int]:
    """Return how the simulated Ollama loads the model, and the bytes that it takes."""

    async def play() -> tuple[Load, int]:
        machine = Machine(cards=(CardSpec(foreign_mib=foreign_mib),))
        async with stage(SimConfig(machine=machine, models=(tag,)), None) as one:
            before = one.sim.cards.free_bytes(0)
            options = {"num_ctx": num_ctx, "num_batch": 512}
            await one.ask({"model": tag, "prompt": "[[tokens=1]] hi", "options": options})
            return one.loaded[-1], before - one.sim.cards.free_bytes(0)

    return run_virtual(play())


@pytest.mark.parametrize("tag", ["qwen3:32b", "gemma3:27b", "gpt-oss:20b", "qwen3:14b", "llama3.1:8b"])
@pytest.mark.parametrize("num_ctx", [8192, 32768])
def test_what_is_said_to_fit_is_loaded_whole_and_takes_so_many_bytes(tag: str, num_ctx: int) -> None:
    """The count and the simulated Ollama agree; the count is strict only by its safety share."""
    for foreign_mib in (0, 4000, 12000):
        found = place(tag, num_ctx, ONE, (foreign_mib << 20,), is_alone=True)
        load, held_bytes = loaded(tag, num_ctx, foreign_mib)
        if found is not None:
            assert not load.is_spilled
            assert found.held_bytes[0] == held_bytes
        elif not load.is_spilled:  # then it fits only within the safety share
            assert place(tag, num_ctx, ONE, ((foreign_mib << 20) - int(0.0125 * 24564 * (1 << 20)),), is_alone=True)
