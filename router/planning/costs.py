"""A cost model of the simulated Ollama: what a load, an unload and an answer take, and a run of a rule on it.

It is a hundred times faster than the simulator, so that many rules can be tried on the same traffic.
`bench/workloads.py` shows how far it is from the simulator, by the rules that run on both. It knows nothing of Ollama's
stalls of up to 5 s after an unload beside a model that stays, so it is too fast where models share a card.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from ollama_simulator.machine.spec import CardSpec, Speeds
from ollama_simulator.scheduler.lease import active_share
from ollama_simulator.scheduler.runner import POLL_S
from router.core.units import MIB
from router.planning.baselines import Rule, Start, Switch, Ticket, Yard
from router.planning.fitting import sim_model, weights_bytes
from router.planning.traffic import Job

START_S = 0.07
"""A switch besides its loads and polls: the query of the cards and the start of a process, in seconds."""

UNLOAD_S = 0.25
"""Every unload but the last of a switch, in seconds: Ollama sees the memory come back at its next poll."""


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a rule on the cost model: each request's wait in seconds, in the order of the traffic; loads."""

    waits_s: tuple[float, ...]
    loads: int

    @property
    def mean_s(self) -> float:
        """The mean wait."""
        return sum(self.waits_s) / max(1, len(self.waits_s))


def load_s(tag: str, speeds: Speeds) -> float:
    """Return the least that a load takes: reading its weights."""
    return weights_bytes(tag) / MIB / speeds.load_mib_per_s


def service_s(job: Job, tag: str, speeds: Speeds) -> float:
    """Return how long `tag`, whole on the GPU, works on a request."""
    prompt_s = job.prompt_tokens / speeds.prompt_tokens_per_s
    if job.embeds:
        return prompt_s
    rate = speeds.tokens_per_s_of(int(weights_bytes(tag) * active_share(sim_model(tag))), 0)
    return prompt_s + job.answer_tokens / rate


def _switch_s(switch: Switch, speeds: Speeds) -> float:
    polls = math.ceil(load_s(switch.tag, speeds) / POLL_S)
    return START_S + polls * POLL_S + UNLOAD_S * max(0, len(switch.evict) - 1)


def run(wanted: Sequence[Ticket], cards: tuple[CardSpec, ...], speeds: Speeds, rule: Rule) -> Run:
    """Return what comes of serving the tickets by `rule`."""
    yard = Yard(cards, rule, coming=wanted)
    numbers = count()
    waits, loads = [0.0] * len(wanted), 0
    events: list[tuple[float, int, Ticket | str | None]] = []

    def at(time_s: float, what: Ticket | str | None) -> None:
        heapq.heappush(events, (time_s, next(numbers), what))

    for ticket in wanted:
        at(ticket.job.at_s, ticket)
        for wake_s in _wakes(ticket, rule):
            at(wake_s, None)
    while events:
        now_s, _, what = heapq.heappop(events)
        if isinstance(what, Ticket):
            yard.arrive(what)
        elif what == "":
            yard.switched(now_s)
        elif what is not None:
            yard.ended(what, now_s)
        for action in yard.pump(now_s):
            if isinstance(action, Start):
                ticket = action.ticket
                waits[ticket.number] = now_s - ticket.job.at_s
                at(now_s + service_s(ticket.job, ticket.tag, speeds), ticket.tag)
            else:
                loads += 1
                at(now_s + _switch_s(action, speeds), "")
    return Run(tuple(waits), loads)


def _wakes(ticket: Ticket, rule: Rule) -> Iterator[float]:
    """Yield when the rule may change its mind because of a ticket, without an event."""
    at_s, foresight = ticket.job.at_s, rule.foresight
    if 0 < rule.age_bound_s < math.inf:
        yield at_s + rule.age_bound_s + 1e-6
    if foresight.ahead_s:
        yield max(0.0, at_s - foresight.ahead_s)
