"""A plan of a switch, or the reason why there is none. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.ollama.runner import LoadOptions

TOO_BIG = "too big"


@dataclass(frozen=True, slots=True)
class Plan:
    """One switch: unload `evict` (weights), then load the model with `options` on `cards`.

    `waits_for` are those of `evict` with requests in flight: the switch starts when they are idle. The needs include
    driver context, margin and safety (a split may use part of a margin: then the need is what the card has). `counted`
    are the options that the bytes stand for, if `options` leave a choice to Ollama. `adopts`: another client's runner
    is taken over unchanged. `expected_bytes` is by how much the probe should see free memory drop, by the formula
    alone.
    """

    options: LoadOptions
    evict: tuple[str, ...]
    waits_for: tuple[str, ...]
    cards: tuple[int, ...]
    need_bytes: int
    have_bytes: int
    need_by_card: tuple[int, ...] = ()
    expected_bytes: int = 0
    cache_bytes: int = 0
    adopts: bool = False
    counted: LoadOptions | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why no plan exists: the least that is needed, the most that is available, both in bytes, and a reason."""

    need_bytes: int
    have_bytes: int
    reason: str
