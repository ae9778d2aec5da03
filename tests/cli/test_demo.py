"""What the demonstration says in the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from ollama_simulator.clock import run_virtual
from ollama_simulator.machine.spec import CardSpec, Machine
from ollama_simulator.server import SimConfig, running_simulator
from router.cli.demo import ALONE, ASKED, MODELS, SAID, Shown, _ask_all


def test_a_row_says_in_plain_words_who_served_and_where() -> None:
    """The model itself or another one, and its share on the GPU."""
    other = Shown("router", "a:70b", "b:8b", "fallback: a:70b too big", 100, 36.55, 1.0)
    assert other.sentence() == "a:70b → b:8b, 100 % on the GPU, 36.5 tokens/s"
    assert Shown("router", "b:8b", "b:8b", "fits", 100, 36.0, 1.0).sentence().startswith("b:8b → itself, ")


def test_a_phase_is_announced_before_its_first_answer() -> None:
    """Its number and what happens, then one line for each answer."""
    said = Console(file=io.StringIO(), width=80)

    async def story() -> None:
        card = CardSpec(name="CUDA0", total_mib=24564)
        async with running_simulator(SimConfig(machine=Machine(cards=(card,)), models=MODELS)) as sim:
            await _ask_all(sim, sim.url, ALONE, [(ASKED, "why?")], said)

    run_virtual(story())
    assert isinstance(said.file, io.StringIO)
    first, second = said.file.getvalue().splitlines()
    assert first == f"1. {SAID[ALONE]}"
    assert second.startswith(f"   {ASKED} → itself, 4")
