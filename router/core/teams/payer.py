"""Who pays for a switch: the request that caused it. Data only."""

from __future__ import annotations

from typing import Protocol

import msgspec

from router.core.teams.team import Team


class Started(Protocol):
    """The charge of a request that uses a resident."""

    def end(self, seconds: float | None) -> None:
        """Correct it to the card-seconds that the request has taken; None = it was not sent."""


class Payer(msgspec.Struct, eq=False, gc=False):
    """The request that a switch is made for; `load_s` are the seconds of switches that were charged to it.

    `rules` is its team with its limits (None = it has none) and `has_waited` whether it has waited in the queue before.
    `weight` is the share of its team, `granted` the charge of a resident that it was let in to and has not entered.
    """

    team: str = ""
    key_id: str = ""
    request_id: str = ""
    operation: str = ""
    load_s: float = 0.0
    weight: float = 1.0
    granted: Started | None = None
    rules: Team | None = None
    has_waited: bool = False

    def grant(self, started: Started | None) -> None:
        """Keep the charge of a resident that it was let in to, until it enters."""
        self.granted = started

    def take(self) -> Started | None:
        """Return what was granted, and keep it no longer."""
        started, self.granted = self.granted, None
        return started

    def give_back(self) -> None:
        """Take back what was granted: the request does not enter."""
        started = self.take()
        if started is not None:
            started.end(None)

    def waits(self) -> None:
        """Record that it waits in the queue."""
        self.has_waited = True

    def charge(self, seconds: float) -> None:
        """Charge the duration of a switch, whether it succeeded or not."""
        self.load_s += seconds


NOBODY = Payer()
"""The payer of a load that no request has asked for. Nothing reads what it is charged."""


class Asking(Protocol):
    """A request: its team, and what its resident and its switches are charged to."""

    @property
    def team(self) -> str: ...

    def paying(self) -> Payer: ...
