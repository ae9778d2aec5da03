"""The order in which a switch unloads several residents, so that Ollama neither stalls nor miscounts. Pure.

Ollama reads the free memory of a card from one of the runners on it, as that runner found it when it was loaded. So
what stays has correct figures only if everything that was loaded after it has gone: the youngest goes first. Where
nothing stays on the card no figures are needed any more; there the oldest goes first, because Ollama's wait for the
memory of a runner that has an older one beside it runs into its limit of 5 s (docs/ollama.md, "Keep-alive and unload").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    """What the order depends on: the number of the load, which rises, and the bytes held per card."""

    @property
    def order(self) -> int: ...

    @property
    def held_bytes(self) -> Mapping[int, int]: ...


T = TypeVar("T", bound=Loaded)


def unload_order(going: Iterable[T], staying: Sequence[Loaded]) -> list[T]:
    """Return `going` in the order in which to unload them beside `staying`."""
    youngest_first = sorted(going, key=lambda resident: -resident.order)
    is_beside = any(_share_a_card(one, other) for one in youngest_first for other in staying)
    return youngest_first if is_beside else youngest_first[::-1]


def _share_a_card(one: Loaded, other: Loaded) -> bool:
    """Return whether both may be on one card; where nothing is measured, they may."""
    cards, others = _cards(one), _cards(other)
    return not cards or not others or not cards.isdisjoint(others)


def _cards(resident: Loaded) -> set[int]:
    return {card for card, held in resident.held_bytes.items() if held}
