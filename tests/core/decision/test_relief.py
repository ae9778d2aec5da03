"""More than needed is evicted where that spares Ollama a stall which would cost more."""

from dataclasses import replace

import pytest

from router.core.decision.context import ContextNeed
from router.core.decision.costs import LoadCosts
from router.core.decision.load_context import plan_switch
from router.core.decision.need import MachineRules
from router.core.decision.plan import Shortage
from router.core.decision.relief import relieved
from router.core.decision.snapshot import Snapshot
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from tests.core.facts import catalog_of, facts_of, gpu_of, resident_of

NEW = facts_of("new:14b", 12)
OLD, YOUNG = facts_of("old:3b", 3), facts_of("young:8b", 9)
RULES = MachineRules(settings=ServerSettings(version="0.33.0"))
FAST, SLOW = LoadCosts(bytes_per_s=20 * GIB), LoadCosts(bytes_per_s=GIB / 2)
NEED = ContextNeed(8192, 8192)


def residents(**of_the_old):
    """Return a small model in the lowest entry, and a bigger one beside it that must go."""
    old = resident_of(OLD, held_gib=3.5, order=1, entry=0, free_at_load_gib=23.5, **of_the_old)
    young = resident_of(YOUNG, held_gib=9.5, order=2, entry=1, free_at_load_gib=20)
    return replace(old, uses=of_the_old.get("uses", 1.0)), replace(young, uses=0.0)


def evicted(residents, costs, awaited=("another",)):
    """Return what goes for the new model while `awaited` are waited for as well."""
    free = 23.5 - sum(sum(one.held_bytes.values()) for one in residents) / GIB
    snapshot = Snapshot((gpu_of(0, 24, free),), residents, catalog_of(NEW, OLD, YOUNG), awaited=frozenset(awaited))
    plan = plan_switch(NEW, LoadOptions(num_batch=512), NEED, snapshot, RULES, costs=costs)
    return set(plan.evict)


def test_a_stall_is_dearer_than_a_quick_load():
    """Five seconds against a fraction of one."""
    assert evicted(residents(), FAST) == {OLD.weights, YOUNG.weights}


def test_a_stall_is_cheaper_than_a_slow_load():
    """From a hard disk, for example."""
    assert evicted(residents(), SLOW) == {YOUNG.weights}


def test_what_is_hardly_wanted_again_costs_little():
    """Its load probably never comes."""
    assert evicted(residents(uses=0.0), LoadCosts(bytes_per_s=GIB)) == {OLD.weights, YOUNG.weights}


def test_a_stall_that_holds_nobody_up_costs_nothing():
    """It is the last unload, the load goes on meanwhile, and nobody waits for another switch."""
    assert evicted(residents(), FAST, awaited=()) == {YOUNG.weights}
    assert evicted(residents(), FAST, awaited=(NEW.weights, OLD.weights)) == {YOUNG.weights}


@pytest.mark.parametrize("reason", [{"kept": True}, {"in_flight": 1}, {"wanted": 1}])
def test_who_is_kept_or_used_or_waited_for_stays(reason):
    """Nobody is made to wait for a stall that may not even come."""
    assert evicted(residents(**reason), FAST) == {YOUNG.weights}


def test_where_nothing_stalls_nobody_goes_in_vain():
    """The one that must go is in the lowest entry."""
    old, young = residents()
    assert evicted((replace(old, entry=1), replace(young, entry=0)), FAST) == {YOUNG.weights}


def test_a_load_that_has_no_plan_without_another_model_keeps_its_own():
    """Somebody may have begun to use the cards in another way."""
    free = 23.5 - sum(sum(one.held_bytes.values()) for one in residents()) / GIB
    snapshot = Snapshot(
        (gpu_of(0, 24, free),), residents(), catalog_of(NEW, OLD, YOUNG), awaited=frozenset({"another"})
    )
    plan = plan_switch(NEW, LoadOptions(num_batch=512), NEED, replace(snapshot, awaited=frozenset()), RULES, costs=FAST)
    assert plan.evict == (YOUNG.weights,)
    assert relieved(NEW.weights, plan, lambda _gone: Shortage(1, 0, "taken"), snapshot, FAST) is plan
