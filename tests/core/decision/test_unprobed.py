"""What may stay loaded where free memory is unknown."""

import pytest

from router.core.decision.snapshot import Snapshot
from router.core.decision.unprobed import plan_unprobed
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from tests.core.facts import facts_of, resident_of

NEW, ONE, TWO = facts_of("new:8b", 4), facts_of("one:3b", 2), facts_of("two:14b", 6)
RESIDENTS = (resident_of(ONE, order=1), resident_of(TWO, order=2, in_flight=1))
SUM_BYTES = sum(one.size_vram_bytes for one in RESIDENTS)
NEED_BYTES = 5 * GIB


def planned(residents=RESIDENTS, **bounds):
    return plan_unprobed(NEW, LoadOptions(num_ctx=8192), NEED_BYTES, Snapshot(None, residents, **bounds))


def test_an_empty_machine_loads_at_once():
    plan = planned(residents=())
    assert (plan.evict, plan.waits_for, plan.options.num_ctx) == ((), (), 8192)


@pytest.mark.parametrize(("proven_bytes", "waits_for"), [(0, (TWO.weights,)), (SUM_BYTES + NEED_BYTES, ())])
def test_what_was_never_too_much_is_loaded_beside_the_others(proven_bytes, waits_for):
    """Unless it is proven that all fit, a busy one is waited for, because Ollama may evict it."""
    plan = planned(proven_bytes=proven_bytes)
    assert (plan.evict, plan.waits_for) == ((), waits_for)


def test_what_is_known_not_to_fit_evicts_the_cheapest_that_makes_room():
    """An idle one before a busy one."""
    plan = planned(ceiling_bytes=SUM_BYTES + NEED_BYTES)
    assert (plan.evict, plan.waits_for) == ((ONE.weights,), (TWO.weights,))


def test_the_whole_card_is_cleared_if_nothing_less_is_enough():
    """The youngest goes first; that it is alone is the load's own trial."""
    plan = planned(ceiling_bytes=NEED_BYTES - 1)
    assert (plan.evict, plan.waits_for) == ((TWO.weights, ONE.weights), (TWO.weights,))


def test_an_older_runner_of_the_same_weights_never_stays():
    """Ollama would reload it."""
    plan = planned(residents=(resident_of(NEW, order=3),), proven_bytes=100 * GIB)
    assert plan.evict == (NEW.weights,)
