"""Plain rules for the order of requests, to compare the router with: strictly first come first served, and batches.

A `Yard` holds what is loaded and who waits, and applies a rule; it does no I/O and keeps no time, so that the same
rule runs on the simulated Ollama (`direct.py`) and on a cost model (`costs.py`). Every request is served by the first
variant of its chain that fits the empty machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ollama_simulator.machine.spec import CardSpec
from router.planning.fitting import Place, first_fitting, least_num_ctx, place
from router.planning.traffic import Job

STEP = 4096
"""Contexts of loads are rounded up to this, so that a growing conversation does not reload each turn."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request, the variant that shall serve it, and the least context for it."""

    number: int
    job: Job
    tag: str
    num_ctx: int


@dataclass(slots=True)
class Held:
    """A loaded model. `due` are the requests that waited when it was loaded: they are served whatever comes."""

    tag: str
    num_ctx: int
    place: Place
    due: frozenset[int] = frozenset()
    busy: int = 0
    used_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """Send a request to its model, which is loaded."""

    ticket: Ticket
    held: Held


@dataclass(frozen=True, slots=True)
class Switch:
    """Unload some models, then load one."""

    evict: tuple[str, ...]
    tag: str
    num_ctx: int
    place: Place


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a clairvoyant rule may know, in seconds (0 = nothing).

    A resident is kept if a request for it comes within `linger_s`; a load begins up to `ahead_s` before its first
    request.
    """

    linger_s: float = 0.0
    ahead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """How turns are given.

    A resident serves all that ask for it before it is given up, except to a request that has waited for `age_bound_s`:
    then it serves only those that waited for it when it was loaded. The next model is that of the oldest request that
    has waited so long, else by `order`: that of the "most" requests, of the "oldest", or by "density" (requests per
    byte).
    """

    age_bound_s: float = 120.0
    order: str = "most"
    foresight: Foresight = Foresight()


FIFO = Rule(age_bound_s=0.0)
"""The oldest request that waits for a load gets it next. One load serves all that wait for it by then."""

BATCH = Rule()
"""A resident is kept until its work is done, for at most two minutes."""


def tickets(jobs: Sequence[Job], chains: Mapping[str, tuple[str, ...]], cards: tuple[CardSpec, ...]) -> list[Ticket]:
    """Return a ticket for each job. Raises ValueError if no variant of its chain fits."""
    nothing = (0,) * len(cards)
    found = []
    for number, job in enumerate(jobs):
        tag = first_fitting(chains[job.model], job.prompt_tokens, job.num_ctx, cards, nothing)
        if tag is None:
            raise ValueError(f"no variant of {job.model} fits")
        found.append(Ticket(number, job, tag, least_num_ctx(tag, job.prompt_tokens, job.num_ctx)))
    return found


@dataclass
class Yard:
    """Who waits, what is loaded, and the rule. `coming` are the requests yet to come, in order, for foresight."""

    cards: tuple[CardSpec, ...]
    rule: Rule
    coming: Sequence[Ticket] = ()
    waiting: list[Ticket] = field(default_factory=list)
    residents: dict[str, Held] = field(default_factory=dict)
    switch: Switch | None = None

    def arrive(self, ticket: Ticket) -> None:
        """Add a request."""
        self.waiting.append(ticket)

    def ended(self, tag: str, now_s: float) -> None:
        """Count the end of a request on `tag`."""
        held = self.residents.get(tag)
        if held is not None:
            held.busy, held.used_s = max(0, held.busy - 1), now_s

    def switched(self, now_s: float) -> None:
        """Enter the model that the switch has loaded."""
        assert self.switch is not None
        made = self.switch
        mine = (ticket for ticket in self.waiting if ticket.tag == made.tag and ticket.num_ctx <= made.num_ctx)
        due = frozenset(ticket.number for ticket in mine)
        self.residents[made.tag] = Held(made.tag, made.num_ctx, made.place, due, used_s=now_s)
        self.switch = None

    def pump(self, now_s: float) -> list[Start | Switch]:
        """Apply the rule: return what is to be done now, and count it as done."""
        actions: list[Start | Switch] = []
        wanted = None if self.switch is not None else self._next(now_s)
        closed = frozenset(wanted.evict) if wanted is not None else frozenset()
        for ticket in list(self.waiting):
            held = self._usable(ticket)
            if held is None or (held.tag in closed and ticket.number not in held.due):
                continue
            if ticket.job.embeds or not held.busy:  # a runner has one slot; embeddings share theirs
                held.busy += 1
                self.waiting.remove(ticket)
                actions.append(Start(ticket, held))
        if wanted is not None and not any(self._is_needed(tag) for tag in wanted.evict):
            for tag in wanted.evict:
                del self.residents[tag]
            self.switch = wanted
            actions.append(wanted)
        return actions

    def _is_needed(self, tag: str) -> bool:
        """Return whether `tag` answers a request now, or has one due."""
        held = self.residents[tag]
        return held.busy > 0 or any(ticket.number in held.due for ticket in self.waiting)

    def _usable(self, ticket: Ticket) -> Held | None:
        held = self.residents.get(ticket.tag)
        return held if held is not None and held.num_ctx >= ticket.num_ctx else None

    def _next(self, now_s: float) -> Switch | None:
        """Return the switch that the rule wants next; the residents that it evicts serve only what is due."""
        for group in self._groups(now_s):
            found = self._planned(group, now_s)
            if found is None:
                continue
            if self._is_overdue(group, now_s) or not any(self._has_work(tag, now_s) for tag in found.evict):
                return found
        return None

    def _is_overdue(self, group: list[Ticket], now_s: float) -> bool:
        return now_s - group[0].job.at_s >= self.rule.age_bound_s

    def _groups(self, now_s: float) -> list[list[Ticket]]:
        """Return the requests that wait for a load, by model, in the order in which the rule wants to load them."""
        groups: dict[str, list[Ticket]] = {}
        for ticket in (*self.waiting, *self._soon(now_s, self.rule.foresight.ahead_s)):
            if self._usable(ticket) is None:
                groups.setdefault(ticket.tag, []).append(ticket)
        return sorted(groups.values(), key=lambda group: self._rank(group, now_s))

    def _rank(self, group: list[Ticket], now_s: float) -> tuple[int, float, float]:
        oldest_s = group[0].job.at_s
        if self._is_overdue(group, now_s):
            return (0, oldest_s, 0.0)
        by = {"most": -float(len(group)), "oldest": oldest_s, "density": -len(group) / _bytes(group[0], self.cards)}
        return (1, by[self.rule.order], oldest_s)

    def _soon(self, now_s: float, within_s: float) -> Iterator[Ticket]:
        """Yield the requests that come within some seconds."""
        if not within_s:
            return
        for ticket in self.coming:
            if ticket.job.at_s > now_s + within_s:
                return
            if ticket.job.at_s > now_s:
                yield ticket

    def _has_work(self, tag: str, now_s: float) -> bool:
        """Return whether requests use `tag`, wait for it, or come soon."""
        held = self.residents[tag]
        soon = self._soon(now_s, self.rule.foresight.linger_s)
        return held.busy > 0 or any(t.tag == tag and t.num_ctx <= held.num_ctx for t in (*self.waiting, *soon))

    def _planned(self, group: list[Ticket], now_s: float) -> Switch | None:
        """Return the switch that disturbs least: those in use are evicted last, then those wanted, then the big."""
        tag = group[0].tag
        least = max(ticket.num_ctx for ticket in group)
        for num_ctx in dict.fromkeys((-(-least // STEP) * STEP, least)):
            found = self._evicting(tag, num_ctx, now_s)
            if found is not None:
                return found
        return None

    def _evicting(self, tag: str, num_ctx: int, now_s: float) -> Switch | None:
        always = (tag,) if tag in self.residents else ()
        others = [other for other in self.residents if other != tag]
        sets = [chosen for count in range(len(others) + 1) for chosen in combinations(others, count)]
        for chosen in sorted(sets, key=lambda chosen: self._cost(chosen, now_s)):
            stay = [held for name, held in self.residents.items() if name not in (*always, *chosen)]
            taken = [sum(held.place.held_bytes.get(card, 0) for held in stay) for card in range(len(self.cards))]
            where = place(tag, num_ctx, self.cards, taken, is_alone=not stay)
            if where is not None:
                return Switch((*always, *chosen), tag, num_ctx, where)
        return None

    def _cost(self, chosen: Sequence[str], now_s: float) -> tuple[float, ...]:
        gone = [self.residents[tag] for tag in chosen]
        return (
            sum(held.busy > 0 for held in gone),
            sum(self._has_work(held.tag, now_s) for held in gone),
            sum(sum(held.place.held_bytes.values()) for held in gone),
            sum(held.used_s for held in gone),
        )


def _bytes(ticket: Ticket, cards: tuple[CardSpec, ...]) -> int:
    found = place(ticket.tag, ticket.num_ctx, cards, (0,) * len(cards), is_alone=True)
    return sum(found.held_bytes.values()) if found is not None else 1 << 40
