"""Evicting more than a load needs, where that spares Ollama a stall which would cost more time. Pure.

After some unloads Ollama waits 5 s in vain (`core/ollama/recovery.py`), because of those that stay. Without them it
would not, and loading one of them again may take less. Only idle residents that nobody waits for are given up for that,
and no kept ones. The cost of one is its load, times how likely it is wanted again.

A stall after the last unload of a switch holds up only the next switch. So this pays where one is waited for already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from router.core.decision.costs import LoadCosts
from router.core.decision.plan import Plan, Shortage
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.unload_order import unloads
from router.core.decision.victims import LEAST_USES, never_waiting
from router.core.ollama.recovery import STALL_S

MOST_RESIDENTS = 6
"""Beside more of them it is not tried: the orders of their unloads are too many."""

UNLOAD_S = 0.5
"""What an unload without a stall takes: Ollama looks for the memory every 0.25 s."""


def relieved(
    weights: str, plan: Plan, without: Callable[[frozenset[str]], Plan | Shortage], snapshot: Snapshot, costs: LoadCosts
) -> Plan:
    """Return the plan to load `weights` that costs least time: `plan`, or one with more residents evicted.

    `without` plans the same load after certain residents are gone.
    """
    loaded = {weights, *(one.weights for one in snapshot.residents)}
    if not plan.evict or plan.waits_for or snapshot.awaited <= loaded or len(loaded) > MOST_RESIDENTS + 1:
        return plan
    stalls_s = _stalls_s(plan, snapshot)
    if stalls_s < STALL_S / 2:
        return plan
    idle = [one for one in never_waiting(snapshot.residents) if not one.wanted and one.weights not in plan.evict]
    sets = [frozenset({one.weights}) for one in idle] + [frozenset(one.weights for one in idle)] * (len(idle) > 1)
    best, best_s = plan, stalls_s
    for gone in sets:
        found = without(gone.union(plan.evict))
        if isinstance(found, Plan) and not found.waits_for:
            more = [one for one in snapshot.residents if one.weights in found.evict and one.weights not in plan.evict]
            found_s = _stalls_s(found, snapshot) + _reloads_s(more, costs)
            if found_s < best_s:
                best, best_s = found, found_s
    return best


def _stalls_s(plan: Plan, snapshot: Snapshot) -> float:
    """Return how many seconds Ollama is expected to stall."""
    going = [one for one in snapshot.residents if one.weights in plan.evict]
    return STALL_S * sum(unloads(going, snapshot.residents, snapshot.gpus or ()).stalls)


def _reloads_s(residents: Iterable[Resident], costs: LoadCosts) -> float:
    """Return what it costs to give these up too."""
    again = ((one, min(1.0, LEAST_USES + one.uses)) for one in residents)
    return sum(UNLOAD_S + share * costs.load_s(one.weights, one.size_bytes) for one, share in again)
