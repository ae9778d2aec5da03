"""What teams may use at most: requests at a time and per minute, tokens per day. Data only.

A request is admitted before it is served, which reserves a place and as many tokens as it is expected to take, and
settled when it has ended, which replaces the reservation by what it took. A reservation ends by itself after its lease,
so that nothing is lost for good if whoever holds it dies in between.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Literal, Protocol

import msgspec

from router.core.teams.team import Team
from router.errors import LimitReached

Reason = Literal["concurrent", "requests_per_minute", "tokens_per_day", "waiting", "evictions_per_minute", "on_loss"]
"""The limit that refuses a request, by its key in the team's file."""

DAY_S = 86400.0
LEASE_S = 3600.0
"""A reservation ends after an hour: hardly a request takes longer, and one that does is only not counted any more."""


class Left(msgspec.Struct, frozen=True, gc=False):
    """One limit as answers show it: `reset_s` is how long until all of it is available again."""

    limit: int
    remaining: int
    reset_s: float


class Standing(msgspec.Struct, frozen=True, gc=False):
    """What is left of a team's limits; None where it has none."""

    requests: Left | None = None
    tokens: Left | None = None


class Granted(Standing, frozen=True, gc=False):
    """The request is admitted, with what is left of the limits then, and must be settled."""


class Refused(msgspec.Struct, frozen=True):
    """The request is above a limit. After `retry_s` it may be admitted."""

    why: Reason
    retry_s: float
    left: Standing


class Asking(msgspec.Struct, frozen=True):
    """Whether the request is admitted is not known here: `answer` asks those who share the limits, and never fails."""

    answer: Callable[[], Awaitable[Granted | Refused]]


def _counted(limit: int | None, one: str, when: str) -> str:
    return f"{limit} {one}{'' if limit == 1 else 's'} {when}"


def refusal(
    team: Team,
    why: Reason,
    retry_s: float,
    left: tuple[tuple[bytes, bytes], ...] = (),
    *,
    position: int | None = None,
) -> LimitReached:
    """Return the error for a request above a limit of its team.

    `left` are headers that say what is left, `position` is the place in the queue that it would have had.
    """
    limits = team.limits
    if why == "on_loss":
        text = f"the limits of the team {team.name} cannot be counted now; try again in {math.ceil(retry_s)} s"
        return LimitReached(text, why=why, retry_after_s=retry_s, left=left)
    what = {
        "concurrent": _counted(limits.concurrent, "request", "at a time"),
        "requests_per_minute": _counted(limits.requests_per_minute, "request", "per minute"),
        "tokens_per_day": _counted(limits.tokens_per_day, "token", "per day"),
        "waiting": _counted(limits.waiting, "request", "in the queue"),
        "evictions_per_minute": _counted(limits.evictions_per_minute, "eviction", "of models of others per minute"),
    }
    text = f"the team {team.name} may use at most {what[why]}; try again in {math.ceil(retry_s)} s"
    return LimitReached(text, why=why, retry_after_s=retry_s, left=left, position=position)


class Quotas(Protocol):
    """The counts behind the limits: in the memory of one router, or in a store that several share."""

    def admit(self, team: Team, request: Hashable, tokens: int) -> Granted | Refused | Asking:
        """Reserve what a request is expected to take. `request` identifies it and is used once.

        `tokens` counts only where the team has a limit of them.
        """
        ...

    def settle(self, request: Hashable, tokens: int) -> None:
        """Replace the reservation by the `tokens` that the request took. A second time it does nothing."""
        ...

    def left(self, team: Team) -> Standing:
        """Return what is left of the team's limits."""
        ...

    def under_way(self, team: Team) -> int:
        """Return how many admitted requests of the team are not settled yet."""
        ...

    def keep_teams(self, names: Collection[str]) -> None:
        """Forget the counts of all other teams: the configuration was reloaded."""
        ...
