"""The processing of a request without a task, as its connection sees it."""

from __future__ import annotations

from typing import Protocol


class Taskless(Protocol):
    """The processing of a request that runs without a task."""

    def give_up(self) -> None:
        """Give up without an answer: the client has left."""

    def interrupt(self) -> None:
        """Answer with an error now: the grace period of a stop is over."""
