"""Counts the changes of one backend's state: a decision holds for one epoch."""

from __future__ import annotations


class Epoch:
    """A counter that the book of residents, the cards and the world share."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def advance(self) -> None:
        """A fact that decisions depend on has changed: remembered decisions are void."""
        self.number += 1
