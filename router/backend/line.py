"""One line per backend: requests are held here and let in model by model, so that Ollama never queues two models.

Whose turn it is, `core/decision/turns.py` says; here are the futures of those who wait, the timer, and the switch under
way, of which at most one runs. `Line.pump` applies the rules whenever something has changed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from router.backend.residency import Residency, SwitchResult, Target
from router.backend.world import World
from router.config import Config
from router.core.decision.turns import Patience, Waiting, turns, wanted_weights
from router.core.decision.verdict import Decision
from router.core.units import GIB
from router.errors import Busy
from router.telemetry import Notified, QueueChanged, Telemetry

LOADING_BYTES_PER_S = GIB
"""For the expected wait in Retry-After: how fast loads are assumed to be."""

MINUTE_S = 60.0

MOST_STRIKES = 3
"""Switches to one model in a row that may end without it; then it is left alone for a while."""

PAUSE_S = 5.0
"""That while, where only the loaded models or the free memory changed."""

BAR_S = 30.0
"""That while, after a load that failed."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in line. `decide` decides under the current state; equal `key` means equal decisions.

    `turn` is done when the request should be decided again; its result is the weights that it was let in to.
    """

    number: int
    key: Hashable
    decide: Callable[[], Decision]
    since_s: float
    turn: asyncio.Future[str]
    served_before: dict[int, int]
    weights: str = ""
    is_due: bool = False

    def wants(self, weights: str) -> None:
        """Record what it waits for now; what it waited for before stays where it waits for nothing."""
        self.weights = weights or self.weights

    def came_due(self, loaded: str) -> None:
        """Record that `loaded` was made resident while it waited."""
        self.is_due = self.is_due or self.weights == loaded

    def let_in(self) -> None:
        """End the wait."""
        if not self.turn.done():
            self.turn.set_result(self.weights)


class Line:
    """Who waits for what on one backend, and which switch is next."""

    def __init__(self, world: World, residency: Residency, config: Config, telemetry: Telemetry) -> None:
        self.closed: frozenset[str] = frozenset()  # residents that take no new requests
        self.loading: Target | None = None
        self._settings = config.queue
        self._patience = Patience(config.queue.age_bound_s, config.queue.affinity_count)
        self._swaps_per_minute = config.defaults.swaps_per_minute
        self._world = world
        self._residency = residency
        self._telemetry = telemetry
        self._tickets: dict[int, Ticket] = {}
        self._numbers = itertools.count()
        self._swaps: deque[float] = deque()
        self._strikes: dict[str, int] = {}
        self._loaded = ""  # what the last switch has made resident, until those who waited for it are due
        self._switching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_pumping = False
        self._now = asyncio.get_running_loop().time

    # --- the side of a request ---------------------------------------------------------------------------------

    def may_upgrade(self) -> bool:
        """True while the swap budget of the last minute is not spent."""
        now_s = self._now()
        while self._swaps and self._swaps[0] <= now_s - MINUTE_S:
            self._swaps.popleft()
        return len(self._swaps) < self._swaps_per_minute

    def may_enter(self, weights: str) -> bool:
        """True when a request for this resident may be sent to it at once."""
        return weights not in self.closed

    async def wait(self, key: Hashable, decide: Callable[[], Decision], since_s: float) -> str:
        """Wait until the request should be decided again; return the weights that it was let in to ("" = none).

        Raises Busy when the line is full or too slow. Leaving (cancellation) takes the ticket out at once; the time in
        which its own model loads does not count.
        """
        if len(self._tickets) >= self._settings.max_waiting:
            raise Busy(retry_after_s=self.expected_wait_s())
        served = {tracked.order: tracked.served for tracked in self._world.residents.values()}
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        ticket = Ticket(next(self._numbers), key, decide, since_s, turn, served)
        self._tickets[ticket.number] = ticket
        self._telemetry.emit(QueueChanged(depth=len(self._tickets)))
        try:
            self.pump()
            await self._wait(ticket)
        except BaseException:
            self._leave(ticket)
            self.pump()  # what was closed for the sake of this ticket opens again
            raise
        self._leave(ticket)
        return ticket.turn.result()

    def _leave(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]
        self._count_wanted()
        self._telemetry.emit(QueueChanged(depth=len(self._tickets)))

    async def _wait(self, ticket: Ticket) -> None:
        deadline_s = ticket.since_s + self._settings.wait_s
        while not ticket.turn.done():
            await asyncio.wait([ticket.turn], timeout=max(0.01, deadline_s - self._now()))
            if ticket.turn.done():
                return
            if self.loading is None or self.loading.weights != ticket.weights:
                position = sum(other.since_s < ticket.since_s for other in self._tickets.values()) + 1
                text = f"server busy: queued for {self._settings.wait_s:.0f} s, position {position}"
                raise Busy(text, retry_after_s=self.expected_wait_s())
            deadline_s = self._now() + 1.0

    def expected_wait_s(self) -> float:
        """A rough count of the seconds until a newcomer would be served: what must be loaded before it."""
        found = (self._world.installed.by_weights(weights) for weights in {t.weights for t in self._tickets.values()})
        return max(1.0, sum(facts.size_bytes for facts in found if facts is not None) / LOADING_BYTES_PER_S)

    @property
    def is_switching(self) -> bool:
        """True while a switch is under way."""
        return self._switching is not None

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return len(self._tickets)

    def reserved_bytes(self, card: int) -> int:
        """What the switch under way needs of `card`; 0 when none runs or it loads elsewhere."""
        plan = self.loading.plan if self.loading is not None else None
        return dict(zip(plan.cards, plan.need_by_card, strict=True)).get(card, 0) if plan is not None else 0

    # --- the side of the card ----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let in everybody whose turn it is; start the next switch if none runs."""
        if self._is_pumping or not (self._tickets or self.closed or self._timer):
            return  # the common end of a request: nobody waits
        self._is_pumping = True
        try:
            self._pump()
        finally:
            self._is_pumping = False

    def _pump(self) -> None:
        self._set_timer(None)
        found = turns(
            self._waiting(),
            self._world.residents,
            self._now(),
            self._patience,
            entering=frozenset(ticket.weights for ticket in self._tickets.values() if ticket.turn.done()),
            closed_by_switch=self.closed if self.is_switching else None,
        )
        self.closed = found.closed
        for number in found.let_in:
            self._tickets[number].let_in()
        if found.start is not None:
            self._start(found.start)
        self._set_timer(found.look_again_s)

    def _waiting(self) -> list[Waiting]:
        """Everybody who waits, with what they would get under the current state."""
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
        if chosen.plan.evict:
            self._swaps.append(self._now())
        self.loading = Target(chosen.facts, chosen.plan)
        self._world.begin_loading(self.loading.weights, chosen.num_ctx)
        self.closed = frozenset((*chosen.plan.evict, self.loading.weights))  # the newcomer until it is verified
        self._switching = asyncio.create_task(self._switch(self.loading), name="switch")

    async def _switch(self, target: Target) -> None:
        result = SwitchResult.FAILED
        try:
            result = await self._residency.switch(target)
        except Exception as error:  # a fault of ours must not stop the line
            self._telemetry.emit(Notified(f"a switch to {target.facts.name} broke off: {error!r}", level="error"))
        finally:
            self.loading = self._switching = None
            self._loaded = target.weights if result is SwitchResult.DONE else ""
            self._world.end_loading()
        self._count_strike(target.weights, result)
        self.pump()

    def _count_strike(self, weights: str, result: SwitchResult) -> None:
        """A model that cannot be made resident is barred for a while, so that its chain goes on without it."""
        if result in (SwitchResult.DONE, SwitchResult.ABANDONED, SwitchResult.AWAY):
            self._strikes.pop(weights, None)
            return
        self._strikes[weights] = self._strikes.get(weights, 0) + 1
        is_failed = result is SwitchResult.FAILED
        if is_failed or self._strikes[weights] >= MOST_STRIKES:
            del self._strikes[weights]
            self._world.bar(weights, BAR_S if is_failed else PAUSE_S, result.value)

    def _set_timer(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s is not None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    async def aclose(self) -> None:
        """Cut the switch under way. Requests in line are cancelled by whoever runs them."""
        self._set_timer(None)
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)
