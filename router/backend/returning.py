"""Memory on its way back: of models that left /api/ps without our unloading them, until the probe shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.backend.guesses import DEAD_SHARE
from router.backend.tracked import Tracked
from router.backend.verification import BACK_SHARE


@dataclass(frozen=True, slots=True)
class Returning:
    """What to wait for until `until_s`: `awaited_bytes` per card. More than `some_bytes` in all is a part of it.

    `used_s` is when it was last in use: what moved before was not this memory coming back. Times are the loop's.
    """

    until_s: float = -math.inf
    awaited_bytes: Mapping[int, int] | None = None
    some_bytes: int = 0
    used_s: float = -math.inf

    def and_of(self, gone: Tracked, last: Mapping[int, int], now_s: float, timeout_s: float) -> Returning:
        """Return this with the memory of one more model; `last` is what others left of each card while it was there."""
        # Not all of it: part of the memory may be taken by others at once, and figures are rounded.
        late = {card: int(held * (1 - BACK_SHARE)) for card, held in gone.held_bytes.items()}
        left = {card: count - late.get(card, 0) for card, count in last.items()}
        some = sum(left.values()) - int(sum(gone.held_bytes.values()) * DEAD_SHARE)
        used_s = max(gone.loaded_at_s, gone.idle_since_s)
        if now_s < self.until_s:  # several left at once: a part of all that they held
            some += self.some_bytes - sum((self.awaited_bytes or {}).values())
            used_s = min(used_s, self.used_s)
        return Returning(now_s + timeout_s, left, some, used_s)

    def is_late(
        self, left: Mapping[int, int], total: Mapping[int, int], noted_s: float, has_moved: Callable[[float], bool]
    ) -> bool:
        """Return True while it is not back: cards lack some of it, and free memory has not moved and come to rest.

        `left` is what others leave of each card of `total` bytes now, noted last at `noted_s`. `has_moved` returns
        whether it has moved since a time.
        """
        awaited = self.awaited_bytes or {}
        if not any(left[card] < min(awaited.get(card, 0), total[card]) for card in left):
            return False
        # Where at least some is there already it may have come back before anybody knew that they had gone.
        return not has_moved(-math.inf if sum(left.values()) > self.some_bytes else max(self.used_s, noted_s))


NOTHING = Returning()
