"""What one place offers for a request: its decision, and what a request would meet there. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind


class Tier(IntEnum):
    """How soon a place can serve a variant, the best first."""

    HOLDS = 0
    LOADING = 1
    BESIDE = 2
    EVICTS = 3
    TRIES = 4
    WAITS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One place, and the decision that it would make for the request; None if it cannot be asked, and `away` is why.

    `load` counts the requests under way or waiting there for the chosen model, `busy` those for all models. `wait_s` is
    how long one more for what it holds or loads would wait, `queue_s` how long a load would wait for those before it,
    both estimated. `card_bytes` is the memory of the cards that the load would use, of all cards if nothing fits.
    `is_installed`: it has a variant of the chain, or had one when it last answered; `has_first`: the same of the first
    one. `is_late`: what is awaited there takes longer than was estimated.
    """

    place: str
    decision: Decision | None = None
    load: int = 0
    busy: int = 0
    wait_s: float = 0.0
    queue_s: float = 0.0
    card_bytes: int = 0
    is_installed: bool = True
    has_first: bool = False
    is_late: bool = False
    away: str = ""

    @property
    def chosen(self) -> Verdict | None:
        """The variant that it would serve, None if it would serve none."""
        return self.decision.chosen if self.decision is not None and not self.away else None

    @property
    def position(self) -> int:
        """The position in the chain of the variant that it would serve: 0 is the biggest."""
        assert self.decision is not None
        return len(self.decision.verdicts) - 1  # a decision ends with the verdict that is chosen

    @property
    def is_without_gpu(self) -> bool:
        """True where requests pass unchanged, because there is no GPU."""
        return self.decision is not None and self.decision.outcome is Outcome.PASSTHROUGH

    @property
    def copy_s(self) -> float:
        """What a load costs there, with what is loaded before it, in seconds."""
        return self.queue_s + (self.chosen.cost_s if self.chosen is not None else 0.0)


def tier_of(chosen: Verdict) -> Tier:
    """Return how soon the place of this verdict can serve it."""
    if chosen.kind is VerdictKind.RESIDENT:
        return Tier.HOLDS
    if chosen.kind is VerdictKind.LOADING:
        return Tier.LOADING
    if chosen.kind is VerdictKind.TRIES:
        return Tier.TRIES
    if chosen.kind is VerdictKind.WAITS:
        return Tier.WAITS
    return Tier.EVICTS if chosen.plan is not None and chosen.plan.evict else Tier.BESIDE
