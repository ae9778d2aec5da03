"""The queue of one backend: requests wait here and are let in model by model and slot by slot.

So Ollama never queues two models, nor more than `queue.ahead` requests for one. `core/decision/turns.py` decides whose
turn it is, `admission.py` fills the slots, `tickets.py` keeps who waits, `waits.py` carries each to its turn. This
module keeps the timer and the switch under way (at most one). `Line.pump` applies the rules whenever the state has
changed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from router.backend.admission import Admission
from router.backend.bounds import Bounds
from router.backend.contest import GIVE_S
from router.backend.residency import Residency
from router.backend.setbacks import Setbacks
from router.backend.shares import Shares
from router.backend.switches import SwitchResult, Target
from router.backend.team_counts import TeamCounts
from router.backend.tracked import Tracked
from router.backend.waits import Waits
from router.backend.world import World
from router.config import Config, FairnessSection, Queue
from router.core.decision.groups import Patience
from router.core.decision.turns import turns
from router.core.decision.verdict import Decision
from router.core.ollama.options import ServerSettings
from router.errors import UpstreamError
from router.telemetry import Notified, Telemetry

MINUTE_S = 60.0


class Line:
    """The queue of one backend and its switches."""

    def __init__(
        self,
        world: World,
        residency: Residency,
        settings: Callable[[], ServerSettings],
        config: Config,
        telemetry: Telemetry,
        counts: TeamCounts,
    ) -> None:
        self.shares = Shares(config.fairness)
        self._loop = loop = asyncio.get_running_loop()
        self._now = loop.time
        self._bounds = Bounds(world, counts, telemetry.emit, loop.time)
        self._contest = residency.contest
        ahead, gives_way = config.queue.ahead, self._contest.gives_way
        self._admission = Admission(world, self.shares, self._bounds, settings, ahead, gives_way)
        self._waitlist, self.slots = self._admission.waitlist, self._admission.slots
        self.enter, self.may_enter = self._admission.enter, self._admission.may_enter
        self.loading: Target | None = None
        self._waits = Waits(self, self._admission, config, telemetry)
        self.join, self.wait, self.give_up = self._waits.join, self._waits.wait, self._waits.give_up
        self._patience, self._swaps_per_minute = _patience(config.queue), config.defaults.swaps_per_minute
        self._world, self._residency, self._telemetry = world, residency, telemetry
        self._swaps: deque[float] = deque()
        self._setbacks = Setbacks(config.switch)
        self._loaded: Target | None = None  # what the last switch has loaded, until who waited for it is marked due
        self._switching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_pumping = False

    # --- requests ----------------------------------------------------------------------------------------------

    def may_upgrade(self) -> bool:
        """Return True unless `swaps_per_minute` is set, and as many upgrades began within the last minute."""
        if self._swaps_per_minute is None:
            return True
        now_s = self._now()
        while self._swaps and self._swaps[0] <= now_s - MINUTE_S:
            self._swaps.popleft()
        return len(self._swaps) < self._swaps_per_minute

    def served(self) -> Mapping[int, int]:
        """Return what each resident has served by now, by its order, if rule 5 counts that."""
        if self._patience.affinity_count is None:
            return {}
        return {tracked.order: tracked.served for tracked in self._world.residents.values()}

    def left(self, tracked: Tracked, now_s: float) -> None:
        """Note that a request to a resident has ended: the next one may have its slot."""
        if not self._admission.left(tracked, now_s) and not tracked.in_flight:
            self.pump()

    def expected_wait_s(self) -> float:
        """Return a rough estimate of the seconds until a new request would be served: all that is in front of it.

        That is the loads, and the longest queue for the slots of a resident, at the pace of its latest answers.
        """
        loads_s = queue_s = 0.0
        for weights, count in self._waitlist.wanted.items():
            if (pace_s := self._admission.pace_s(weights)) is not None:
                queue_s = max(queue_s, count * pace_s)
            elif (facts := self._world.installed.by_weights(weights)) is not None:
                loads_s += self._residency.load_times.costs.load_s(facts.weights, facts.size_bytes)
        return max(1.0, loads_s + queue_s)

    def switch_s(self) -> tuple[float, float]:
        """Return the seconds that the switch under way takes, as far as is known, and those that have gone by."""
        if self.loading is None:
            return 0.0, 0.0
        costs, facts = self._residency.load_times.costs, self.loading.facts
        room_s = costs.unload_s * len(self.loading.plan.evict)
        return room_s + costs.load_s(self.loading.weights, facts.size_bytes), self._now() - self.loading.since_s

    @property
    def is_switching(self) -> bool:
        """True while a switch is under way."""
        return self._switching is not None

    @property
    def depth(self) -> int:
        """The number of waiting requests."""
        return self._waitlist.depth

    def waiting_for(self) -> list[tuple[str, float, str]]:
        """Return what each waiting request waits for (weights, "" = not known), since when, and its team, in order."""
        return self._waitlist.rows()

    def reserved_bytes(self, card: int) -> int:
        """Return the bytes that the switch under way needs of `card`; 0 if none runs or it does not use the card."""
        plan = self.loading.plan if self.loading is not None else None
        return dict(zip(plan.cards, plan.need_by_card, strict=True)).get(card, 0) if plan is not None else 0

    def configure(self, fairness: FairnessSection) -> None:
        """Apply other settings of the shares, after a reload."""
        self.shares.configure(fairness)
        self.pump()

    def keep_teams(self, names: frozenset[str]) -> None:
        """Forget what is counted of all other teams, after a reload."""
        self.shares.keep_teams(names)
        self._bounds.keep_teams(names)

    def forget(self, weights: str | None) -> None:
        """Forget the setbacks of these weights, or all (None): they may be loaded again now."""
        self._setbacks.forget(weights)
        self._world.unbar(weights)
        self.pump()

    # --- switches ----------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let in the requests whose turn it is; start the next switch if none runs."""
        if self._is_pumping or not (self._waitlist.depth or self._admission.closed or self._timer):
            return  # common case: no request waits
        self._is_pumping = True
        try:
            self._pump()
        finally:
            self._is_pumping = False

    def _pump(self) -> None:
        self._set_timer(None)  # the state has changed: the time for the next look follows from the result below
        giving_way = self._contest.giving_way()
        loaded, self._loaded = self._loaded, None
        groups = self._admission.decided(loaded, self._now())
        found = turns(
            self._admission.waiting(groups),
            self._world.residents,
            self._now(),
            Patience(self.shares.age_bound_s, cost_factor=0.0) if self.shares.is_contested else self._patience,
            entering=frozenset(self._waitlist.entering),
            closed_by_switch=self._admission.closed if self.is_switching else None,
            giving_way=giving_way,
        )
        self._admission.close(found.closed)
        self._admission.let_in(groups, frozenset(found.let_in), found.closed | giving_way)
        pause_s = max(self._setbacks.paused_until_s - self._now(), self._world.loads.hold_s)
        if found.start is not None and pause_s > 0:
            self._set_timer(pause_s)
            return
        if found.start is not None:
            self._start(found.start)
        looks_s = (found.look_again_s, GIVE_S if giving_way else None, *self._admission.held_s.values())
        self._set_timer(min((one_s for one_s in looks_s if one_s is not None), default=None))

    def _start(self, decision: Decision) -> None:
        chosen = decision.chosen
        assert chosen is not None and chosen.plan is not None and chosen.facts is not None
        # Only upgrades are optional; every other switch is what somebody asked for.
        if chosen.is_upgrade and self._swaps_per_minute is not None:
            self._swaps.append(self._now())
        payer = self._admission.cause(chosen.facts.weights)
        self.loading = Target(chosen.facts, chosen.plan, payer, self._now())
        self._world.loads.begin(self.loading.weights, chosen.num_ctx)
        self._bounds.spend(self.loading.payer, chosen.plan)
        # Those that must go take no more requests; the new model takes none before its load is verified.
        self._admission.close(frozenset((*chosen.plan.evict, self.loading.weights)))
        self._switching = asyncio.create_task(self._switch(self.loading), name="switch")

    async def _switch(self, target: Target) -> None:
        result, began_s = SwitchResult.FAILED, self._now()
        try:
            result = await self._residency.switch(target)
        except Exception as error:  # a bug in one switch must not block the queue
            self._telemetry.emit(Notified(f"the switch to {target.facts.name} failed: {error!r}", level="error"))
        finally:
            # In any case, or no switch would ever start again.
            self.loading = self._switching = None
            self._loaded = target if result is SwitchResult.DONE else None
            self.shares.switched(target.payer, self._now() - began_s)
            self._world.loads.end()
        failure = self._residency.last_failure(target.weights)
        why, upsets = failure.message if failure else "", self._contest.upsets
        bar = self._setbacks.count(target.weights, result, why, self._now(), upsets)
        if bar is not None:
            self._world.bar(*bar)
        if self._setbacks.has_given_up:
            self._fail_waiting()
        self.pump()

    def _fail_waiting(self) -> None:
        """Ollama cannot be reached: tell those who wait, and when to come back."""
        why = self._residency.why_away if self._world.is_up else self._world.why_away()
        error = UpstreamError(why, retry_after_s=max(1.0, self._setbacks.paused_until_s - self._now()))
        self._waitlist.fail(error)

    def _set_timer(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self.pump) if delay_s is not None else None

    async def aclose(self) -> None:
        """Cancel the switch under way. Waiting requests are cancelled by their own tasks."""
        self._set_timer(None)
        self._waits.close()
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)


def _patience(queue: Queue) -> Patience:
    most_s = queue.wait_s / 2  # a group that turned impatient only when it is refused would never be served
    return Patience(queue.age_bound_s, queue.cost_factor, queue.affinity_count, most_s)
