"""Planning without a probe (verify mode), pure: what may stay loaded beside a model whose load only `/api/ps` verifies.

Two bounds of what the cards hold are known. `Snapshot.proven_bytes`: models of this size were whole in VRAM together.
`Snapshot.ceiling_bytes`: as much as this spilled, made Ollama evict, or is all that the cards had when they were read
last. Up to the first everything stays; between the two a load beside the others is worth a try, because Ollama itself
evicts before it spills; from the second on, the cheapest set that brings the sum below it is evicted.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.switching import Plan
from router.core.decision.victims import cheapest_sets, named, without
from router.core.ollama.model import ModelFacts
from router.core.ollama.runner import LoadOptions


def plan_unprobed(facts: ModelFacts, options: LoadOptions, need_bytes: int, snapshot: Snapshot) -> Plan:
    """Return the plan of a load that needs `need_bytes`: the cheapest eviction after which it may fit."""
    same = tuple(one for one in snapshot.residents if one.weights == facts.weights and facts.weights)
    ceiling_bytes = snapshot.ceiling_bytes

    def may_fit(stay: tuple[Resident, ...]) -> bool:
        return not stay or ceiling_bytes is None or need_bytes + _vram_bytes(stay) < ceiling_bytes

    others = without(same, snapshot.residents)
    sets = ((*same, *chosen) for _, chosen in cheapest_sets(others))
    evicted = next(one for one in sets if may_fit(without(one, snapshot.residents)))
    stay = without(evicted, snapshot.residents)
    is_proven = not stay or need_bytes + _vram_bytes(stay) <= snapshot.proven_bytes
    return _plan(options, evicted, (*evicted, *(() if is_proven else stay)))


def _plan(options: LoadOptions, evicted: Iterable[Resident], touched: Iterable[Resident]) -> Plan:
    """Return the plan; Ollama may evict any of `touched`, so the load waits until they are idle."""
    return Plan(
        options=options,
        evict=named(evicted),
        waits_for=named(one for one in touched if one.in_flight),
        cards=(),
        need_bytes=0,
        have_bytes=0,
    )


def _vram_bytes(residents: Iterable[Resident]) -> int:
    return sum(resident.size_vram_bytes for resident in residents)
