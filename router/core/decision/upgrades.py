"""Case 10 of `policy.py`: whether a chain that is served by a smaller variant returns to a bigger one now. Pure.

A return costs a switch, and it may be in vain: memory that other programs gave back is sometimes taken again at once.
The first return is made at once, because the bigger variant is what was asked for. After one in vain, as with skis that
one may rent or buy, the smaller variant serves on until it has been in the way for as long as the return costs. These
rules apply in this order; the first that holds the return back is its reason:

 1. NEVER      the chain's `upgrade` is never
 2. PREFERS    `prefer` is speed: what is loaded serves. If it is quality, nothing else holds a return back.
 3. LOAD_WAIT  the switch would take longer than `max_load_wait_s`
 4. BUDGET     `swaps_per_minute` returns, if that is set, began within the last minute
 5. LATELY     other programs had some of the memory within the last `upgrade_after_s` seconds; unless that is set,
               after a return in vain within as many seconds as the switch costs, twice as many after each further one

A load is a return only if this chain is served by a smaller variant: a variant that is loaded for somebody else holds
nothing back (`prefer: speed` excepted). Nor is it one for a conversation that this variant, or a smaller one, has
served so far: a conversation keeps its model, whatever serves others of its chain. A return that evicts nothing is not
held back by rules 4 and 5: if it is in vain, the smaller variant is still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from router.core.decision.chain_choices import Prefer
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import Plan

MOST_PATIENCE = 16.0
"""After returns in vain, memory must have been free for up to this many times what the switch costs."""


class HeldBy(Enum):
    """What holds a bigger variant back; the value is the text for people."""

    NEVER = "the chain does not return to a bigger variant (upgrade: never)"
    PREFERS = "what is loaded is preferred (prefer: speed)"
    LOAD_WAIT = "loading it takes longer than max_load_wait_s"
    BUDGET = "swaps_per_minute is spent"
    LATELY = "its memory has not been free for long enough"


@dataclass(frozen=True, slots=True)
class UpgradeRule:
    """How one chain returns to a bigger variant, by the operator, and where it stands now.

    `is_moved_down`: its last request was served by a smaller variant. `is_spent`: the swap budget is. `after_s` is how
    long memory must have been free; None = for `patience` times what the switch costs (0 until a return was in vain).
    `kept` is the place in the chain of the variant that served the last turn of the request's conversation.
    """

    prefer: Prefer = "balanced"
    is_never: bool = False
    is_moved_down: bool = False
    is_spent: bool = False
    after_s: float | None = None
    patience: float = 0.0
    max_load_wait_s: float = 60.0
    kept: int | None = None

    def held_by(self, plan: Plan, cost_s: float, snapshot: Snapshot) -> HeldBy | None:
        """Return what holds back a load by `plan` in place of a loaded smaller variant; None if nothing does."""
        if self.is_never:
            return HeldBy.NEVER
        if self.prefer == "speed":
            return HeldBy.PREFERS
        if self.prefer == "quality":
            return None
        if cost_s > self.max_load_wait_s:
            return HeldBy.LOAD_WAIT
        if not plan.evict:
            return None
        if self.is_spent:
            return HeldBy.BUDGET
        free_for_s = self.patience * cost_s if self.after_s is None else self.after_s
        return None if _was_free(plan, snapshot.left_bytes, free_for_s) else HeldBy.LATELY


def _was_free(plan: Plan, left_bytes: Mapping[int, tuple[tuple[float, int], ...]], for_s: float) -> bool:
    """Return whether other programs left each card's need alone for `for_s` seconds; a card without history passes."""
    for card, need in zip(plan.cards, plan.need_by_card, strict=True):
        since = [left for age_s, left in left_bytes.get(card, ()) if age_s <= for_s]
        if since and min(since) < need:
            return False
    return True
