"""Placement over several cards where llama.cpp's margin is switched off (`LLAMA_ARG_FIT_TARGET=0`)."""

from __future__ import annotations

from pathlib import Path

from ollama_simulator.recorded.plans import Recordings
from router.core.memory.footprint import MemoryOptions
from router.core.memory.placement import Card, place
from router.core.units import GIB

LLAMA_8B = Recordings(Path(__file__).parents[2] / "data" / "fit").facts["llama3.1-8b", "Q4_K_M"]


def test_without_a_margin_the_copies_of_a_pipeline_have_nowhere_to_go() -> None:
    """Filled to the brim with one copy of the inputs, the last card cannot hold four; a margin absorbs them."""
    free = (2 * GIB, 15 * GIB // 4)
    brim = [Card(index, count, 0, 0) for index, count in enumerate(free)]
    assert not place(LLAMA_8B, MemoryOptions(8192), brim, safety_bytes=0).fits
    roomy = [Card(index, count + GIB, 0, GIB) for index, count in enumerate((4 * GIB, 15 * GIB // 4))]
    assert place(LLAMA_8B, MemoryOptions(8192), roomy, safety_bytes=0).fits
