"""Facts of models that are gone, freed a few at a time: of thousands it takes long, and nothing interrupts it.

Whoever still reads the old catalog (a decision, a cache, what compares catalogs) may be the last to hold it, at any
time. So the facts are held here as well until nobody else holds them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable

from router.core.ollama.model import ModelFacts

AT_ONCE = 25
"""Models that are looked at in one step: the largest take a third of a millisecond each."""

SOON_S, LATER_S = 0.005, 1.0
"""Pause after a step; after a round in which all were held by others."""

_HELD_HERE = 2
"""References to an object that nobody else holds: the local variable, and the argument of `getrefcount`."""


class Leaving:
    """Holds facts until nobody else does. Its owner calls `let_go` as often as that says."""

    def __init__(self) -> None:
        self._held: OrderedDict[ModelFacts, None] = OrderedDict()
        self._in_vain = 0  # those looked at since the last one was freed

    def __len__(self) -> int:
        return len(self._held)

    def add(self, gone: Iterable[ModelFacts]) -> None:
        """Hold these facts, too."""
        self._held.update(dict.fromkeys(gone))

    def let_go(self) -> float:
        """Free those of the next `AT_ONCE` that nobody else holds; return after how many seconds to call again.

        0.0 if nothing is left.
        """
        for _ in range(min(AT_ONCE, len(self._held))):
            facts, _ = self._held.popitem(last=False)
            self._in_vain += 1
            if sys.getrefcount(facts) > _HELD_HERE:
                self._held[facts] = None
            else:
                self._in_vain = 0
        if not self._held:
            return 0.0
        if self._in_vain < len(self._held):
            return SOON_S
        self._in_vain = 0
        return LATER_S
