"""Company before context: a smaller context rather than two models that evict each other."""

import pytest

from router.core.decision.context import ContextNeed
from router.core.decision.load_context import plan_switch
from router.core.decision.need import MachineRules, need_of
from router.core.decision.snapshot import Snapshot
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from tests.core.facts import facts_of, gpu_of, resident_of

NEW, OTHER = facts_of("new:8b", 4), facts_of("other:14b", 8)
CATALOG = {"new": NEW, "other": OTHER}
RULES = MachineRules()
BASE = LoadOptions(num_batch=512)
NEED = ContextNeed(8192, 32768)
CARD = gpu_of()


def need_bytes(facts, num_ctx):
    return need_of(facts, BASE.at(num_ctx), RULES).need_bytes(CARD)


def planned(free_bytes, need=NEED, held_bytes=10 * GIB, **other):
    """Plan a load beside a resident that holds `held_bytes`, on a card with `free_bytes` free."""
    gpu = gpu_of(free_gib=free_bytes / GIB, total_gib=(free_bytes + held_bytes) / GIB)
    resident = resident_of(OTHER, held_gib=held_bytes / GIB, **other)
    snapshot = Snapshot((gpu,), (resident,), CATALOG)
    return plan_switch(NEW, BASE, need, snapshot, RULES, least_num_ctx=8192)


@pytest.mark.parametrize("use", [{"in_flight": 1}, {"wanted": 1}, {"is_hot": True}])
def test_a_resident_in_use_is_spared_at_the_price_of_context(use):
    """At the largest context that fits beside it."""
    plan = planned(need_bytes(NEW, 18432), **use)
    assert (plan.evict, plan.options.num_ctx) == ((), 18432)


def test_an_idle_resident_that_was_not_used_lately_goes_for_the_largest_context():
    plan = planned(need_bytes(NEW, 18432))
    assert (plan.evict, plan.options.num_ctx) == ((OTHER.weights,), 32768)


def test_a_context_that_is_named_is_loaded_whatever_it_evicts():
    """It is a demand."""
    plan = planned(need_bytes(NEW, 18432), ContextNeed(32768, 32768), is_hot=True)
    assert (plan.evict, plan.options.num_ctx) == ((OTHER.weights,), 32768)


def test_company_that_must_go_leaves_room_for_its_return():
    """So that the two end up side by side: the evicted one at the least context, this one at what is left beside it."""
    room_bytes = need_bytes(NEW, 12288) + need_bytes(OTHER, 8192)
    plan = planned(2 * GIB, held_bytes=room_bytes - 2 * GIB, is_hot=True)
    assert plan.evict == (OTHER.weights,)
    assert plan.options.num_ctx < 32768
    assert room_bytes - plan.expected_bytes >= need_bytes(OTHER, 8192)


def test_company_that_cannot_come_back_beside_it_costs_no_context():
    """The two do not fit together at any context."""
    plan = planned(2 * GIB, held_bytes=need_bytes(NEW, 32768), is_hot=True)
    assert (plan.evict, plan.options.num_ctx) == ((OTHER.weights,), 32768)


def test_a_kept_resident_is_not_evicted_for_company_at_a_smaller_context():
    """It goes last."""
    hot = facts_of("hot:8b", 4)
    residents = (resident_of(hot, held_gib=10, is_hot=True), resident_of(OTHER, held_gib=10, kept=True))
    snapshot = Snapshot((gpu_of(free_gib=1, total_gib=21),), residents, {**CATALOG, "hot": hot})
    plan = plan_switch(NEW, BASE, NEED, snapshot, RULES, least_num_ctx=8192)
    assert plan.evict == (hot.weights,)


def grown(free_bytes, need):
    """Plan a reload of a model that holds 6 GiB beside another of 10 GiB, on a card with `free_bytes` free."""
    gpu = gpu_of(free_gib=free_bytes / GIB, total_gib=free_bytes / GIB + 16)
    residents = (
        resident_of(OTHER, held_gib=10, order=1, free_at_load_gib=gpu.total_bytes / GIB),
        resident_of(NEW, held_gib=6, order=2, free_at_load_gib=gpu.total_bytes / GIB - 10, context_length=8192),
    )
    return plan_switch(NEW, BASE, need, Snapshot((gpu,), residents, CATALOG), RULES, least_num_ctx=8192)


def test_a_model_that_outgrew_its_context_is_reloaded_beside_its_neighbour_with_headroom():
    """Twice what it needs now, or as much of that as fits; its neighbour goes only where not even the need fits."""
    need = ContextNeed(16384, 16384, headroom=32768)
    reload_bytes = need_bytes(NEW, 32768) - 6 * GIB
    ample, tight, short = (grown(reload_bytes + more, need) for more in (GIB, -GIB, -6 * GIB))
    assert (ample.evict, ample.options.num_ctx) == ((NEW.weights,), 32768)
    assert tight.evict == (NEW.weights,)
    assert 16384 <= tight.options.num_ctx < 32768
    assert OTHER.weights in short.evict
    assert short.options.num_ctx == 16384
