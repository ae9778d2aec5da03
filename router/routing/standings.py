"""Where each chain stands: served by its first variant or moved down to a smaller one, and how well returns lasted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.core.decision.chain import Chain, Variant
from router.core.decision.upgrades import MOST_PATIENCE
from router.core.decision.verdict import Decision, Verdict, VerdictKind

VAIN_S = 60.0
"""A return to the first variant was in vain if the chain had to move down again within this time."""

MOST_CHAINS = 1024
"""The number of chains of which the standing is kept."""

_UNABLE = frozenset({VerdictKind.MISSING, VerdictKind.INCAPABLE, VerdictKind.CONTEXT})


@dataclass(slots=True)
class _Standing:
    is_moved_down: bool = False
    returned_at_s: float | None = None
    patience: float = 0.0

    def move_down(self, now_s: float) -> None:
        if self.returned_at_s is not None:
            is_vain = now_s - self.returned_at_s < VAIN_S
            self.patience = min(MOST_PATIENCE, 2 * self.patience or 1.0) if is_vain else 0.0
        self.is_moved_down, self.returned_at_s = True, None

    def move_up(self, now_s: float) -> None:
        self.is_moved_down, self.returned_at_s = False, now_s


_NEW = _Standing()


class Standings:
    """The standings of all chains; `now` is the loop's time.

    Chains of equal variants stand together: clients may call one by any number of names, if its name is a pattern.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: dict[tuple[Variant, ...], _Standing] = {}

    def note_served(self, chain: Chain, decision: Decision) -> None:
        """Note by which variant of `chain` a request is served.

        One that the bigger variants cannot serve at all (no vision, for example) says nothing about memory.
        """
        bigger = [verdict for verdict in decision.verdicts[:-1] if not _is_absent(verdict)]
        is_down = any(verdict.kind not in _UNABLE for verdict in bigger)
        known = self._known.get(chain.variants)
        if known is None:
            if not is_down:
                return  # as all chains begin
            known = self._known[chain.variants] = _Standing()
            if len(self._known) > MOST_CHAINS:
                del self._known[next(iter(self._known))]
        if not bigger and known.is_moved_down:
            known.move_up(self._now())
        elif is_down and not known.is_moved_down:
            known.move_down(self._now())

    def is_moved_down(self, chain: Chain) -> bool:
        """Return True if `chain` was last served by a smaller variant than its first, for want of memory."""
        return self._known.get(chain.variants, _NEW).is_moved_down

    def patience(self, chain: Chain) -> float:
        """Return how many times the cost of the switch memory must have been free before `chain` returns."""
        return self._known.get(chain.variants, _NEW).patience


def _is_absent(verdict: Verdict) -> bool:
    """Return whether a variant is not there for any request."""
    return verdict.kind is VerdictKind.MISSING or (verdict.facts is not None and verdict.facts.is_remote)
