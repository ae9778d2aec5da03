"""A script of the VRAM that other programs take and return: lines of ``SECONDS CARD MIB``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ollama_simulator.machine.cards import Cards
from router.core.units import MIB


@dataclass(frozen=True, slots=True)
class ForeignStep:
    """From `at_s` on, other programs hold `mib` on `card`."""

    at_s: float
    card: int
    mib: int


def parse_script(text: str) -> tuple[ForeignStep, ...]:
    """Parse the steps, in order of time, without comments (``# …``). Raises ValueError with the line number."""
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            at_s, card, mib = words
            steps.append(ForeignStep(float(at_s), int(card), int(mib)))
        except ValueError:
            raise ValueError(f"line {number}: expected 'SECONDS CARD MIB', found {line.strip()!r}") from None
    return tuple(sorted(steps, key=lambda step: step.at_s))


async def play(cards: Cards, steps: tuple[ForeignStep, ...]) -> None:
    """Run the script, starting now, on the running loop's clock."""
    began_s = asyncio.get_running_loop().time()
    for step in steps:
        await asyncio.sleep(max(0.0, began_s + step.at_s - asyncio.get_running_loop().time()))
        cards.set_foreign(step.card, step.mib * MIB)
