"""What readings say of runners: guesses of what one holds, where no probe has measured it, and which have died."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from router.adapters.ollama import PsRow
from router.backend.tracked import Tracked
from router.core.ollama.runner import Gpu

DEAD_SHARE = 0.5
"""A runner has died if more than this share of its memory is free again, even if ps still lists it."""


def among_used(row: PsRow, gpus: Sequence[Gpu], known: Sequence[Tracked]) -> dict[int, int]:
    """Return the bytes per card of a runner on cards that are read: ps' figure on the fullest ones.

    Its memory is part of what is used now and not held by `known`, the other residents; each card adds a context.
    """
    left, held = row.size_vram_bytes, {}
    for gpu in sorted(gpus, key=lambda gpu: gpu.free_bytes - gpu.total_bytes):
        others = sum(tracked.held_bytes.get(gpu.index, 0) for tracked in known)
        share = min(left, max(0, gpu.total_bytes - gpu.free_bytes - others))
        if share > 0:
            held[gpu.index] = min(share + gpu.context_bytes, gpu.total_bytes - gpu.free_bytes - others)
            left -= share
    return held


def on_roomiest(row: PsRow, gpus: Sequence[Gpu]) -> dict[int, int]:
    """Return the bytes of a runner on the roomiest of cards that are only stated."""
    roomiest = max(gpus, key=lambda gpu: gpu.free_bytes)
    return {roomiest.index: row.size_vram_bytes + roomiest.context_bytes}


def spread(row: PsRow, gpus: Sequence[Gpu], cards: tuple[int, ...]) -> dict[int, int]:
    """Return the bytes per card of a runner that was loaded on `cards`: ps' figure split evenly, plus a context."""
    context = {gpu.index: gpu.context_bytes for gpu in gpus}
    share = row.size_vram_bytes // max(1, len(cards))
    return {card: share + context.get(card, 0) for card in cards}


def less_held(gpus: Sequence[Gpu], held_on: Callable[[int], int]) -> tuple[Gpu, ...]:
    """Return cards that are only stated, with what residents hold of each taken off."""
    return tuple(replace(gpu, free_bytes=max(0, gpu.free_bytes - held_on(gpu.index))) for gpu in gpus)


def dead(gpus: Sequence[Gpu], residents: Iterable[Tracked]) -> list[Tracked]:
    """Return the measured runners whose memory is free again; also those that are known to have died."""
    found: list[Tracked] = []
    measured = [tracked for tracked in residents if tracked.is_measured]
    for gpu in gpus:
        missing = sum(t.held_bytes.get(gpu.index, 0) for t in measured) - (gpu.total_bytes - gpu.free_bytes)
        # A gap is attributed to those that are known to have died, then to one large runner rather than several small.
        for tracked in sorted(
            measured, key=lambda t: (t not in found, not t.is_spilled, -t.held_bytes.get(gpu.index, 0))
        ):
            held = tracked.held_bytes.get(gpu.index, 0)
            if held and missing > held * DEAD_SHARE:
                found += [] if tracked in found else [tracked]
                missing -= held
    return found
