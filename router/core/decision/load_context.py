"""The context of a load: the largest that fits, unless a smaller one keeps company. Pure.

 0. GROWN     A model that outgrew the context it is loaded with is reloaded beside all others, if that is possible:
              with up to twice the context that is needed now, so that the next step needs no reload.
 1. LARGEST   The largest context for which a plan exists, whatever idle residents it evicts.
 2. BESIDE    If that plan evicts company (a resident in use, or used more than once within the last two minutes), the
              largest context that evicts none of it.
 3. RETURN    If there is none, the largest context that leaves room for the evicted company to come back at the least
              context: two models that are wanted in turn then end up side by side instead of evicting each other.

A context that the request, the chain entry or the Modelfile names leaves no choice, except for the headroom of rule 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

from router.core.decision.context import ContextNeed, round_up
from router.core.decision.costs import LoadCosts
from router.core.decision.foreseen import Books
from router.core.decision.need import MachineRules, need_of
from router.core.decision.relief import relieved
from router.core.decision.snapshot import Resident, Snapshot
from router.core.decision.switching import Plan, Shortage, is_out_of_question, plan_at
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import DEFAULT_BATCH, can_complete
from router.core.ollama.runner import LoadOptions


def plan_switch(
    facts: ModelFacts,
    base: LoadOptions,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: MachineRules,
    *,
    may_pin: bool = True,
    least_num_ctx: int = 0,
    costs: LoadCosts | None = None,
    books: Books | None = None,
) -> Plan | Shortage:
    """Return the plan to load `facts` by the rules of this module; `base` has the options besides the context.

    Without `may_pin` the request cannot name a card, so Ollama must choose the planned card by itself. `least_num_ctx`
    is the least context with which another model would be loaded. With `costs` more is evicted where that spares Ollama
    a stall which would cost more (`relief.py`). `books` are those of the snapshot, if several plans are made on it.
    """
    books = books or Books.of(snapshot)
    found = _plan(facts, base, need, snapshot, rules, books, may_pin=may_pin, least_num_ctx=least_num_ctx)
    if isinstance(found, Shortage) or costs is None:
        return found

    def without(gone: frozenset[str]) -> Plan | Shortage:
        return plan_at(facts, base.at(found.options.num_ctx), snapshot, rules, may_pin=may_pin, gone=gone, books=books)

    return relieved(facts.weights, found, without, snapshot, costs)


def _plan(
    facts: ModelFacts,
    base: LoadOptions,
    need: ContextNeed,
    snapshot: Snapshot,
    rules: MachineRules,
    books: Books,
    *,
    may_pin: bool,
    least_num_ctx: int,
) -> Plan | Shortage:
    """Apply the rules of this module."""

    @cache
    def plan(num_ctx: int, spared: frozenset[str] = frozenset()) -> Plan | Shortage:
        is_last = num_ctx == need.lower and not spared  # whose shortage is the reason why nothing can be loaded
        options = base.at(num_ctx)
        return plan_at(
            facts, options, snapshot, rules, may_pin=may_pin, spared=spared, books=books, is_explained=is_last
        )

    if need.headroom:  # rule 0
        others = frozenset(one.weights for one in snapshot.residents if one.weights != facts.weights)
        ample = replace(need, upper=max(need.upper, need.headroom))
        for num_ctx in contexts(ample, rules.step):
            if isinstance(found := plan(num_ctx, others), Plan):
                return found
    largest = _largest(need, rules.step, plan)
    if isinstance(largest, Shortage) or need.upper == need.lower:
        return largest
    company = frozenset(one.weights for one in snapshot.residents if one.is_company and one.weights != facts.weights)
    lost = company.intersection(largest.evict)
    if not lost:
        return largest
    below = [num_ctx for num_ctx in contexts(need, rules.step) if num_ctx <= (largest.options.num_ctx or 0)]
    spared = company | {one.weights for one in snapshot.residents if one.kept}  # kept models go last
    is_vain = is_out_of_question(facts, base.at(need.lower), rules, books, may_pin=may_pin, spared=spared)
    beside = () if is_vain else (found for one in below if isinstance(found := plan(one, spared), Plan))
    if (first := next(iter(beside), None)) is not None:
        return first
    gone = [one for one in snapshot.residents if one.weights in lost]
    back_bytes = sum(_least_bytes(one, snapshot, rules, books, least_num_ctx) for one in gone)
    all_bytes = sum(gpu.total_bytes for gpu in snapshot.gpus or ())
    if all_bytes - need_of(facts, base.at(need.lower), rules).footprint.need_bytes < back_bytes:  # no plan leaves it
        return largest
    plans = (found for one in below if isinstance(found := plan(one), Plan))
    return next((found for found in plans if _leaves(found, back_bytes)), largest)


def _largest(need: ContextNeed, step: int, plan: Callable[[int], Plan | Shortage]) -> Plan | Shortage:
    """Apply rule 1."""
    found = plan(need.upper)
    if isinstance(found, Plan) or need.upper == need.lower:
        return found
    least = plan(need.lower)
    if isinstance(least, Shortage):  # then no context in between has a plan either
        return least
    for num_ctx in contexts(need, step):
        if need.lower < num_ctx < need.upper:
            between = plan(num_ctx)
            if isinstance(between, Plan):
                return between
    return least


def contexts(need: ContextNeed, step: int) -> Iterator[int]:
    """Yield the largest context, then each time three quarters of it rounded down to `step`, and `lower` at the end.

    Before that `lower` rounded up, which a client that needs more on every turn does not outgrow at once.
    """
    num_ctx, last = need.upper, min(need.upper, round_up(need.lower, step))
    while num_ctx > last:
        yield num_ctx
        num_ctx = max(last, num_ctx * 3 // 4 // step * step)
    yield last
    if last > need.lower:
        yield need.lower


def _leaves(plan: Plan, back_bytes: int) -> bool:
    """Return True if the cards of `plan` have `back_bytes` left after its load."""
    return plan.have_bytes - plan.expected_bytes >= back_bytes


def _least_bytes(resident: Resident, snapshot: Snapshot, rules: MachineRules, books: Books, least_num_ctx: int) -> int:
    """Return what `resident` would need at the least context, in bytes; what it holds now if that is unknown."""
    held_bytes = sum(resident.held_bytes.values())
    facts = books.facts(resident.weights)
    if facts is None or not can_complete(facts) or not least_num_ctx or not snapshot.gpus:
        return held_bytes
    num_ctx = min(least_num_ctx, resident.context_length or least_num_ctx)
    options = LoadOptions(num_ctx=num_ctx, num_batch=DEFAULT_BATCH)
    return min(need_of(facts, options, rules).need_bytes(gpu) for gpu in snapshot.gpus)
