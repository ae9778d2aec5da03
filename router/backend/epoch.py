"""The epoch: the number of a state of one backend. A remembered decision is valid for one epoch."""

from __future__ import annotations


class Epoch:
    """A counter that `Residents`, `Cards`, `Installed` and `World` share."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def advance(self) -> None:
        """Invalidate all remembered decisions: a fact that they depend on has changed."""
        self.number += 1
