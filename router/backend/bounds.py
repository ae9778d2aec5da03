"""What a team may make a backend do: how many of its requests wait, what it evicts of others, how much it loads.

The first two count over all backends of a router (`team_counts.py`), the last is of the cards of each. The limits
(`core/teams/team.py`) are those of the rulebook that a request began with. A team above `waiting` is refused. One above
`evictions_per_minute` or its cap of VRAM waits, and others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from router.backend.team_counts import TeamCounts
from router.backend.world import World
from router.core.decision.reserved import held_by_team
from router.core.decision.switching import Plan
from router.core.decision.turns import LOOK_AGAIN_S
from router.core.teams.evictions import of_others
from router.core.teams.payer import Payer
from router.core.teams.quotas import refusal
from router.core.teams.team import Team
from router.telemetry import Rejected

Wish = tuple[Payer, Plan | None, str]
"""What some of the line wait for: the payer of the oldest, the load, or the resident of which they wait for a slot."""


class Bounds:
    """The bounds of all teams on one backend, whose line is `waitlist`.

    `held_s` maps places in the list of wishes to how long they wait yet.
    """

    def __init__(
        self, world: World, counts: TeamCounts, emit: Callable[[Rejected], None], now: Callable[[], float]
    ) -> None:
        self._world = world
        self._emit = emit
        self._now = now
        self._counts, self._evictions = counts, counts.evictions
        self.waitlist = counts.new_waitlist()

    def keep_teams(self, names: frozenset[str]) -> None:
        """Forget the evictions of all other teams."""
        self._evictions.keep_only(names)

    def check_waiting(self, payer: Payer, retry_s: Callable[[], float]) -> None:
        """Raise LimitReached if as many of the team wait as may; one that waits again has its place already."""
        most = payer.rules.limits.waiting if payer.rules is not None else None
        if payer.rules is None or most is None or payer.has_waited or self._counts.waiting(payer.team) < most:
            return
        self._emit(Rejected(payer.team, "waiting"))
        raise refusal(payer.rules, "waiting", retry_s(), position=self.waitlist.depth + 1)

    def spend(self, payer: Payer, plan: Plan) -> None:
        """Count the models of others that a switch for the payer evicts."""
        if payer.rules is not None and payer.rules.limits.evictions_per_minute is not None:
            self._evictions.spend(payer.rules, of_others(payer.team, plan.evict, self._users()), self._now())

    def held_s(self, wishes: Collection[Wish]) -> Mapping[int, float]:
        """Return by place those whose team may not load what they wait for now, and when to look again, in seconds."""
        held_s: dict[int, float] = {}
        for at, (payer, plan, _) in enumerate(wishes):
            if plan is not None and payer.rules is not None and (wait_s := self._eviction_s(payer.rules, plan)) > 0:
                held_s[at] = wait_s
        capped = {at for at, wish in enumerate(wishes) if at not in held_s and self._is_above_cap(wish)}
        for at in capped:
            free = (wish for other, wish in enumerate(wishes) if other not in capped and other not in held_s)
            if _has_others(wishes, at, free):
                held_s[at] = LOOK_AGAIN_S
        return held_s

    def _eviction_s(self, team: Team, plan: Plan) -> float:
        if team.limits.evictions_per_minute is None or not plan.evict:
            return 0.0
        return self._evictions.wait_s(team, of_others(team.name, plan.evict, self._users()), self._now())

    def _users(self) -> Mapping[str, Collection[str]]:
        now_s = self._now()
        return {weights: tracked.users_at(now_s) for weights, tracked in self._world.residents.items()}

    def _is_above_cap(self, wish: Wish) -> bool:
        """Return True if the team would hold more than its cap after the load."""
        payer, plan, weights = wish
        gpus, cap = self._world.cards.gpus, payer.rules.memory.cap if payer.rules is not None else None
        if cap is None or plan is None or gpus is None:
            return False
        now_s, gone = self._now(), {*plan.evict, weights}
        stay = (one.frozen(0, now_s) for weights, one in self._world.residents.items() if weights not in gone)
        held_bytes = held_by_team(stay).get(payer.team, 0) + sum(plan.need_by_card)
        return held_bytes > cap.of_bytes(sum(gpu.total_bytes for gpu in gpus))


def _has_others(wishes: Collection[Wish], at: int, free: Iterable[Wish]) -> bool:
    """Return True if another team waits for memory, or for a resident that the load would evict.

    Those that are kept from loading themselves do not count, or two teams above their caps would wait for each other.
    """
    payer, plan, _ = list(wishes)[at]
    evicted = plan.evict if plan is not None else ()
    return any(
        other.team != payer.team and (other_plan is not None or weights in evicted)
        for other, other_plan, weights in free
    )
