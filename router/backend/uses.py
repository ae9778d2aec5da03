"""How often, and when last, a model was used: what a load spares, and what an eviction would cost."""

from __future__ import annotations

import math

import msgspec

HOT_S = 120.0
"""A resident that was used more than once within this time is company: a load spares it at the price of its context. A
request counts half as much after it."""


class Uses(msgspec.Struct, frozen=True, gc=False):
    """The ends of the last two uses of a model, and the weight of all: one each, half as much after every `HOT_S`."""

    before_last_s: float = -math.inf
    last_s: float = -math.inf
    weight: float = 0.0

    def and_at(self, now_s: float) -> Uses:
        """Return the uses with one more that ends now."""
        weight = self.weight if now_s == self.last_s else self.weight_at(now_s)
        return Uses(self.last_s, now_s, weight + 1.0)

    def weight_at(self, now_s: float) -> float:
        """Return the weight as it is at `now_s`."""
        return self.weight * 0.5 ** ((now_s - self.last_s) / HOT_S) if self.weight else 0.0


NEVER_USED = Uses()
