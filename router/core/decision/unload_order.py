"""The order in which a switch unloads several residents, so that Ollama neither stalls nor miscounts. Pure.

Ollama reads the free memory of a card from one of the runners on it, as that runner found it when it was loaded. So
what stays has correct figures only if everything that was loaded after it has gone: the youngest goes first. Where
nothing stays on the card no figures are needed any more; there the oldest goes first, because Ollama's wait for the
memory of a runner that has an older one beside it runs into its limit of 5 s (docs/ollama.md, "Keep-alive and unload").
Beside one that stays it does so too; these go last, because a load may begin during the last wait.
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

    def rank(one: T) -> tuple[bool, int]:
        is_beside = any(_share_a_card(one, other) for other in staying)
        return is_beside, -one.order if is_beside else one.order

    return sorted(going, key=rank)


def _share_a_card(one: Loaded, other: Loaded) -> bool:
    """Return whether both may be on one card; where nothing is measured, they may."""
    cards, others = _cards(one), _cards(other)
    return not cards or not others or not cards.isdisjoint(others)


def _cards(resident: Loaded) -> set[int]:
    return {card for card, held in resident.held_bytes.items() if held}
