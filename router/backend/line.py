"""The queue of one backend: requests wait here and are let in model by model, so that Ollama never queues two models.

`core/decision/turns.py` decides whose turn it is. This module keeps the waiting requests' futures, the timer, and the
switch under way (at most one). `Line.pump` applies the decision whenever the state has changed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from router.backend.contest import GIVE_S
from router.backend.residency import Residency
from router.backend.setbacks import Setbacks
from router.backend.switches import SwitchResult, Target
from router.backend.world import World
from router.config import Config
from router.core.decision.turns import Patience, Waiting, turns, wanted_weights
from router.core.decision.verdict import Decision
from router.errors import Busy, RouterError, UpstreamError
from router.telemetry import Notified, QueueChanged, Telemetry

MINUTE_S = 60.0


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request. `decide` decides under the current state; requests with equal `key` get equal decisions.

    `turn` is done when the request should be decided again; its result is the weights that it was let in to, or
    the error that ends it.
    `served_before` holds, by the resident's `order`, the number of requests served when this one began to wait.
    """

    number: int
    key: Hashable
    decide: Callable[[], Decision]
    since_s: float
    turn: asyncio.Future[str | RouterError]
    served_before: dict[int, int]
    weights: str = ""
    is_due: bool = False

    def wants(self, weights: str) -> None:
        """Set the weights that the request waits for; "" leaves the last ones."""
        self.weights = weights or self.weights

    def came_due(self, loaded: str) -> None:
        """Mark the request as due if it waited for `loaded`, which has just been loaded."""
        self.is_due = self.is_due or self.weights == loaded

    def fail(self, error: RouterError) -> None:
        """End the wait with an error (as a result: a waiter that leaves now would not retrieve an exception)."""
        if not self.turn.done():
            self.turn.set_result(error)

    def let_in(self) -> None:
        """End the wait; a no-op if it has ended."""
        if not self.turn.done():
            self.turn.set_result(self.weights)


class Line:
    """The queue of one backend and its switches."""

    def __init__(self, world: World, residency: Residency, config: Config, telemetry: Telemetry) -> None:
        self.closed: frozenset[str] = frozenset()  # weights of the residents that take no new requests
        self.loading: Target | None = None
        self._settings = config.queue
        queue = config.queue  # a group that turned impatient only when it is refused would never be served
        self._patience = Patience(queue.age_bound_s, queue.cost_factor, queue.affinity_count, queue.wait_s / 2)
        self._swaps_per_minute = config.defaults.swaps_per_minute
        self._world = world
        self._residency = residency
        self._telemetry = telemetry
        self._tickets: dict[int, Ticket] = {}
        self._numbers = itertools.count()
        self._swaps: deque[float] = deque()
        self._setbacks = Setbacks(config.switch)
        self._contest = residency.contest
        self._loaded = ""  # weights loaded by the last switch, until the requests that waited for them are marked due
        self._switching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_pumping = False
        self._now = asyncio.get_running_loop().time

    # --- requests ----------------------------------------------------------------------------------------------

    def may_upgrade(self) -> bool:
        """Return True unless `swaps_per_minute` is set, and as many upgrades began within the last minute."""
        if self._swaps_per_minute is None:
            return True
        now_s = self._now()
        while self._swaps and self._swaps[0] <= now_s - MINUTE_S:
            self._swaps.popleft()
        return len(self._swaps) < self._swaps_per_minute

    def may_enter(self, weights: str) -> bool:
        """Return True if a request for this resident may be sent immediately."""
        return weights not in self.closed and not self._contest.gives_way(weights)

    async def wait(self, key: Hashable, decide: Callable[[], Decision], since_s: float) -> str:
        """Wait until the request should be decided again; return the weights that it was let in to ("" = none).

        Raises Busy if the queue is full, or after `queue.wait_s`; the time in which the request's own model loads does
        not count. Cancellation removes the request from the queue immediately.
        """
        if len(self._tickets) >= self._settings.max_waiting:
            raise Busy(retry_after_s=self.expected_wait_s())
        served = {tracked.order: tracked.served for tracked in self._world.residents.values()}
        turn: asyncio.Future[str | RouterError] = asyncio.get_running_loop().create_future()
        ticket = Ticket(next(self._numbers), key, decide, since_s, turn, served)
        self._tickets[ticket.number] = ticket
        self._telemetry.emit(QueueChanged(depth=len(self._tickets)))
        try:
            self.pump()
            await self._wait(ticket)
        except BaseException:
            self._leave(ticket)
            self.pump()  # residents that were closed in favour of this request take requests again
            raise
        self._leave(ticket)
        result = ticket.turn.result()
        if isinstance(result, RouterError):
            raise result
        return result

    def _leave(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]
        self._count_wanted()
        self._telemetry.emit(QueueChanged(depth=len(self._tickets)))

    async def _wait(self, ticket: Ticket) -> None:
        deadline_s = ticket.since_s + self._settings.wait_s
        while not ticket.turn.done():
            # At least one turn of the loop, so that a request past its deadline can still be let in.
            await asyncio.wait([ticket.turn], timeout=max(0.01, deadline_s - self._now()))
            if ticket.turn.done():
                return
            if self.loading is None or self.loading.weights != ticket.weights:
                position = sum(other.since_s < ticket.since_s for other in self._tickets.values()) + 1
                text = f"server busy: queued for {self._settings.wait_s:.0f} s, position {position}"
                raise Busy(text, retry_after_s=self.expected_wait_s())
            deadline_s = self._now() + 1.0  # not refused while its own model loads: check again in a second

    def expected_wait_s(self) -> float:
        """Return a rough estimate of the seconds until a new request would be served: the loads in front of it."""
        costs = self._residency.load_times.costs
        found = (self._world.installed.by_weights(weights) for weights in {t.weights for t in self._tickets.values()})
        return max(1.0, sum(costs.load_s(facts.weights, facts.size_bytes) for facts in found if facts is not None))

    @property
    def is_switching(self) -> bool:
        """True while a switch is under way."""
        return self._switching is not None

    @property
    def depth(self) -> int:
        """The number of waiting requests."""
        return len(self._tickets)

    def waiting_for(self) -> list[tuple[str, float]]:
        """Return the weights that each waiting request waits for ("" = not known), and since when, oldest first."""
        return sorted(((one.weights, one.since_s) for one in self._tickets.values()), key=lambda row: row[1])

    def reserved_bytes(self, card: int) -> int:
        """Return the bytes that the switch under way needs of `card`; 0 if none runs or it does not use the card."""
        plan = self.loading.plan if self.loading is not None else None
        return dict(zip(plan.cards, plan.need_by_card, strict=True)).get(card, 0) if plan is not None else 0

    def forget(self, weights: str | None) -> None:
        """Forget the setbacks of these weights, or all (None): they may be loaded again now."""
        self._setbacks.forget(weights)
        self._world.unbar(weights)
        self.pump()

    # --- switches ----------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let in the requests whose turn it is; start the next switch if none runs."""
        if self._is_pumping or not (self._tickets or self.closed or self._timer):
            return  # common case: no request waits
        self._is_pumping = True
        try:
            self._pump()
        finally:
            self._is_pumping = False

    def _pump(self) -> None:
        self._set_timer(None)  # the state has changed: the time for the next look follows from the result below
        giving_way = self._contest.giving_way()
        found = turns(
            self._waiting(),
            self._world.residents,
            self._now(),
            self._patience,
            entering=frozenset(ticket.weights for ticket in self._tickets.values() if ticket.turn.done()),
            closed_by_switch=self.closed if self.is_switching else None,
            giving_way=giving_way,
        )
        self.closed = found.closed
        for number in found.let_in:
            self._tickets[number].let_in()
        pause_s = self._setbacks.paused_until_s - self._now()
        if found.start is not None and pause_s > 0:
            self._set_timer(pause_s)
            return
        if found.start is not None:
            self._start(found.start)
        look_again_s = found.look_again_s
        self._set_timer(min(look_again_s or GIVE_S, GIVE_S) if giving_way else look_again_s)

    def _waiting(self) -> list[Waiting]:
        """Return the waiting requests with their decisions under the current state."""
        loaded, self._loaded = self._loaded, ""
        decisions: dict[Hashable, Decision] = {}
        waiting = []
        for ticket in self._tickets.values():
            if ticket.turn.done():
                continue
            if (decision := decisions.get(ticket.key)) is None:
                decision = decisions[ticket.key] = ticket.decide()
            ticket.wants(wanted_weights(decision))
            is_resident = decision.chosen is not None and decision.chosen.resident is not None
            if loaded and is_resident:
                ticket.came_due(loaded)
            waiting.append(Waiting(ticket.number, ticket.since_s, decision, ticket.served_before, is_due=ticket.is_due))
        self._count_wanted()
        return waiting

    def _count_wanted(self) -> None:
        wanted: dict[str, int] = {}
        for ticket in self._tickets.values():
            wanted[ticket.weights] = wanted.get(ticket.weights, 0) + 1
        self._world.want(wanted)

    def _start(self, decision: Decision) -> None:
        chosen = decision.chosen
        assert chosen is not None and chosen.plan is not None and chosen.facts is not None
        # Only upgrades are optional; every other switch is what somebody asked for.
        if chosen.is_upgrade and self._swaps_per_minute is not None:
            self._swaps.append(self._now())
        self.loading = Target(chosen.facts, chosen.plan)
        self._world.begin_loading(self.loading.weights, chosen.num_ctx)
        # Those that must go take no more requests; the new model takes none before its load is verified.
        self.closed = frozenset((*chosen.plan.evict, self.loading.weights))
        self._switching = asyncio.create_task(self._switch(self.loading), name="switch")

    async def _switch(self, target: Target) -> None:
        result = SwitchResult.FAILED
        try:
            result = await self._residency.switch(target)
        except Exception as error:  # a bug in one switch must not block the queue
            self._telemetry.emit(Notified(f"the switch to {target.facts.name} failed: {error!r}", level="error"))
        finally:
            # In any case, or no switch would ever start again.
            self.loading = self._switching = None
            self._loaded = target.weights if result is SwitchResult.DONE else ""
            self._world.end_loading()
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
        for ticket in self._tickets.values():
            ticket.fail(error)

    def _set_timer(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s is not None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    async def aclose(self) -> None:
        """Cancel the switch under way. Waiting requests are cancelled by their own tasks."""
        self._set_timer(None)
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)
