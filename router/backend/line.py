"""One line per backend: requests are held here and released model by model, so that Ollama never queues two models.

Requests for a resident model go at once (affinity) until somebody else has waited longer than the age bound, or has
been overtaken too often: then the residents that stand in his way take no new requests, finish those in flight, and go.
But whoever waited while a model was loaded is served by that load: else two models whose loads take longer than the age
bound would push each other out for ever, and serve nobody.
Among the models that wait, the one that waits too long is first, else the one with most waiters per byte to load.

`Line.pump` looks at everything that waits whenever something has changed; it starts at most one switch at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from router.backend.residency import Ending, Residency, Target
from router.backend.world import World
from router.core.decision.policy import Decision, VerdictKind
from router.core.decision.switching import Plan
from router.errors import Busy
from router.telemetry import Noted, QueueChanged, Telemetry

LOADING_BYTES_PER_S = 1 << 30
"""For the expected wait in Retry-After, until loads have been measured."""

MINUTE_S = 60.0
IMPATIENT_S = 0.5  # how often is looked again while somebody has waited too long

MOST_STRIKES = 3
"""So many switches to one model in a row may end without it; then it is left alone for a while."""

PAUSE_S = 5.0
"""That while, where only the world moved; after a failed load it is `LineSettings.bar_s`."""


@dataclass(frozen=True, slots=True)
class LineSettings:
    """Bounds of waiting, each a config key (`queue.*`, `defaults.swaps_per_minute`)."""

    max_waiting: int = 512
    wait_s: float = 300.0
    age_bound_s: float = 20.0
    affinity_count: int = 16
    swaps_per_minute: int = 4
    bar_s: float = 30.0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in line. `decide` decides anew under the world as it is; equal `key` means equal decisions.

    `served_before` is how many requests each resident (by its `order`) had served when this one came. `is_due` is True
    for one that has waited for the switch that has just ended: it goes in although the way is closed to newcomers.
    """

    key: Hashable
    decide: Callable[[], Decision]
    since_s: float
    turn: asyncio.Future[str]
    served_before: dict[int, int]
    weights: str = ""
    is_due: bool = False


@dataclass(slots=True)
class Group:
    """Tickets that wait for the same thing: a switch, or a resident that takes no new requests for now."""

    decision: Decision
    tickets: list[Ticket] = field(default_factory=list)

    @property
    def plan(self) -> Plan | None:
        """The switch that would serve them; None where none is needed or none exists."""
        return self.decision.chosen.plan if self.decision.chosen is not None else None

    @property
    def oldest(self) -> Ticket:
        return min(self.tickets, key=lambda ticket: ticket.since_s)


class Line:
    """Who waits for what on one backend, and which switch is next."""

    def __init__(self, world: World, residency: Residency, settings: LineSettings, telemetry: Telemetry) -> None:
        self.settings = settings
        self.closed: frozenset[str] = frozenset()  # residents that take no new requests
        self.loading: Target | None = None
        self._world = world
        self._residency = residency
        self._telemetry = telemetry
        self._tickets: dict[Ticket, None] = {}
        self._swaps: deque[float] = deque()
        self._strikes: dict[str, int] = {}
        self._loaded = ""  # what the last switch has made resident, until those who waited for it were called
        self._switching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False

    # --- the side of a request ---------------------------------------------------------------------------------

    def may_upgrade(self) -> bool:
        """True while the swap budget of the last minute is not spent."""
        now_s = _now()
        while self._swaps and self._swaps[0] <= now_s - MINUTE_S:
            self._swaps.popleft()
        return len(self._swaps) < self.settings.swaps_per_minute

    def may_enter(self, weights: str) -> bool:
        """True when a request for this resident may go at once."""
        return weights not in self.closed

    async def wait(self, key: Hashable, decide: Callable[[], Decision], since_s: float) -> str:
        """Stand in line until the request should be decided anew; the weights that it has been let in to ("" = none).

        Raises Busy when the line is full or too slow. Leaving (cancellation) takes the ticket out at
        once; the time in which its own model loads does not count.
        """
        if len(self._tickets) >= self.settings.max_waiting:
            raise Busy(retry_after_s=self.expected_wait_s())
        served = {tracked.order: tracked.served for tracked in self._world.residents.values()}
        ticket = Ticket(key, decide, since_s, asyncio.get_running_loop().create_future(), served)
        self._tickets[ticket] = None
        self._telemetry.emit(QueueChanged(depth=len(self._tickets)))
        try:
            self.pump()
            await self._wait(ticket)
        except BaseException:
            self._leave(ticket)
            self.pump()  # what was closed for the sake of who has left opens again
            raise
        self._leave(ticket)
        return ticket.turn.result()

    def _leave(self, ticket: Ticket) -> None:
        del self._tickets[ticket]
        self._count_wanted()
        self._telemetry.emit(QueueChanged(depth=len(self._tickets)))

    async def _wait(self, ticket: Ticket) -> None:
        deadline_s = ticket.since_s + self.settings.wait_s
        while not ticket.turn.done():
            await asyncio.wait([ticket.turn], timeout=max(0.01, deadline_s - _now()))
            if ticket.turn.done():
                return
            if self.loading is None or self.loading.weights != ticket.weights:
                place = sorted(self._tickets, key=lambda other: other.since_s).index(ticket) + 1
                text = f"server busy: waited {self.settings.wait_s:.0f} s in line, at place {place}"
                raise Busy(text, retry_after_s=self.expected_wait_s())
            deadline_s = _now() + 1.0

    def expected_wait_s(self) -> float:
        """A rough count of the seconds until a newcomer would be served: what must be loaded before it."""
        sizes = {t.weights: self._size_bytes(t.weights) for t in self._tickets}
        return max(1.0, sum(sizes.values()) / LOADING_BYTES_PER_S)

    @property
    def is_switching(self) -> bool:
        """True while a switch is under way."""
        return self._switching is not None

    @property
    def depth(self) -> int:
        return len(self._tickets)

    def reserved_bytes(self, card: int) -> int:
        """What the switch under way needs of `card`; 0 when none runs or it loads elsewhere."""
        plan = self.loading.plan if self.loading is not None else None
        return dict(zip(plan.cards, plan.need_by_card, strict=True)).get(card, 0) if plan is not None else 0

    # --- the side of the card ----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let go everybody who can go; start the next switch if none runs."""
        if self._pumping or not (self._tickets or self.closed or self._timer):
            return  # the usual end of a request: nobody waits
        self._pumping = True
        try:
            self._pump()
        finally:
            self._pumping = False

    def _pump(self) -> None:
        self._set_timer(None)
        if self._switching is not None:
            self._release_ready(self._groups(), may_refuse=False)
            return
        groups = self._groups()
        self._call_due(groups)
        ordered = sorted((group for group in groups.values() if group.plan is not None), key=self._rank)
        first = next((group for group in ordered if self._is_impatient(group)), None)
        # What stands in the way of an impatient group is closed before anybody else is let in to it.
        self.closed = frozenset(first.plan.evict) if first is not None and first.plan is not None else frozenset()
        self._release_ready(groups)
        let_in = {ticket.weights for ticket in self._tickets if ticket.turn.done()}  # as good as in flight
        for group in ordered:
            plan = group.plan
            if plan is not None and not plan.waits_for and not let_in.intersection(plan.evict):
                self._start(group)
                break
            if group is first:
                break
        if ordered and not self.is_switching:
            waits = [t.since_s + self.settings.age_bound_s for group in ordered for t in group.tickets]
            self._set_timer(max(IMPATIENT_S, min(waits) - _now()))

    def _release_ready(self, groups: dict[str, Group], *, may_refuse: bool = True) -> None:
        """Wake those whose model is resident and open, and those who can only be refused or passed through.

        While a switch runs its memory is on the way, so nobody is refused then.
        """
        for group in groups.values():
            chosen = group.decision.chosen
            if chosen is None and not may_refuse:
                continue
            if chosen is not None and chosen.kind is not VerdictKind.RESIDENT:
                continue
            resident = chosen.resident if chosen is not None else None
            is_open = resident is None or self.may_enter(resident.weights)
            for ticket in group.tickets:
                if not ticket.turn.done() and (ticket.is_due or is_open):
                    ticket.turn.set_result(ticket.weights)

    def _call_due(self, groups: dict[str, Group]) -> None:
        """Whoever has waited for the switch that has just ended may use what it has loaded."""
        loaded, self._loaded = self._loaded, ""
        for group in groups.values() if loaded else ():
            chosen = group.decision.chosen
            if chosen is not None and chosen.resident is not None and chosen.resident.weights == loaded:
                for ticket in group.tickets:
                    ticket.is_due = True

    def _groups(self) -> dict[str, Group]:
        """Everybody who waits, by what they would get under the world as it is now."""
        decisions: dict[Hashable, Decision] = {}
        groups: dict[str, Group] = {}
        for ticket in self._tickets:
            if ticket.turn.done():
                continue
            if (decision := decisions.get(ticket.key)) is None:
                decision = decisions[ticket.key] = ticket.decide()
            ticket.weights = wanted_weights(decision) or ticket.weights
            where = f"{ticket.weights}|{decision.chosen.num_ctx if decision.chosen else ''}"
            groups.setdefault(where, Group(decision)).tickets.append(ticket)
        self._count_wanted()
        return groups

    def _count_wanted(self) -> None:
        wanted: dict[str, int] = {}
        for ticket in self._tickets:
            wanted[ticket.weights] = wanted.get(ticket.weights, 0) + 1
        self._world.wanted = wanted

    def _rank(self, group: Group) -> tuple[int, float]:
        """Impatient groups by age; then most waiters for the least to load."""
        oldest = group.oldest
        if self._is_impatient(group):
            return (0, oldest.since_s)
        return (1, -len(group.tickets) / max(1, self._size_bytes(oldest.weights)))

    def _is_impatient(self, group: Group) -> bool:
        """True when its oldest has waited too long, or has been overtaken too often by a resident in its way."""
        oldest = group.oldest
        is_old = _now() - oldest.since_s >= self.settings.age_bound_s
        return is_old or self._overtaken(oldest, group.plan) >= self.settings.affinity_count

    def _overtaken(self, ticket: Ticket, plan: Plan | None) -> int:
        """Requests that the residents which `plan` would evict have served since `ticket` came."""
        known = self._world.residents
        in_the_way = [known[weights] for weights in plan.evict if weights in known] if plan is not None else []
        return sum(tracked.served - ticket.served_before.get(tracked.order, 0) for tracked in in_the_way)

    def _size_bytes(self, weights: str) -> int:
        return next((f.size_bytes for f in self._world.catalog.values() if f.weights == weights), 0)

    def _start(self, group: Group) -> None:
        chosen = group.decision.chosen
        assert chosen is not None and chosen.plan is not None and chosen.facts is not None
        if chosen.plan.evict:
            self._swaps.append(_now())
        self.loading = Target(chosen.facts, chosen.plan)
        self._world.loading = (self.loading.weights, chosen.num_ctx)
        self._world.changed()
        self.closed = frozenset((*chosen.plan.evict, self.loading.weights))  # the newcomer until it is verified
        self._switching = asyncio.create_task(self._switch(self.loading), name="switch")

    async def _switch(self, target: Target) -> None:
        ending = Ending.FAILED
        try:
            ending = await self._residency.switch(target)
        except Exception as error:  # a fault of ours must not stop the line
            self._telemetry.emit(Noted(f"a switch to {target.facts.name} broke off: {error!r}", level="error"))
        finally:
            self.loading = self._world.loading = None
            self._loaded = target.weights if ending is Ending.DONE else ""
            self._switching = None
            self._world.changed()
        self._count_strike(target.weights, ending)
        self.pump()

    def _count_strike(self, weights: str, ending: Ending) -> None:
        """A model that cannot be made resident is barred for a while, so that its chain goes on without it."""
        if ending in (Ending.DONE, Ending.ABANDONED, Ending.AWAY):
            self._strikes.pop(weights, None)
            return
        self._strikes[weights] = self._strikes.get(weights, 0) + 1
        if ending is Ending.FAILED or self._strikes[weights] >= MOST_STRIKES:
            del self._strikes[weights]
            is_failed = ending is Ending.FAILED
            self._world.bar(weights, self.settings.bar_s if is_failed else PAUSE_S, ending.value)

    def _set_timer(self, delay_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s is not None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    async def aclose(self) -> None:
        """Stop: a switch under way is cut, everybody in line is let go to be refused."""
        self._set_timer(None)
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)


def wanted_weights(decision: Decision) -> str:
    """The weights that a decision waits for; "" when it waits for nothing."""
    chosen = decision.chosen
    if chosen is None:
        return ""
    if chosen.resident is not None:
        return chosen.resident.weights
    return chosen.facts.weights if chosen.facts is not None else ""


def _now() -> float:
    return asyncio.get_running_loop().time()
