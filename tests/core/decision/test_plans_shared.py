"""What is worked out once for many plans gives the same plans as if each were made alone."""

from hypothesis import given
from hypothesis import strategies as st

from router.core.decision.foreseen import Books
from router.core.decision.need import MachineRules
from router.core.decision.plan import Plan
from router.core.decision.switching import NO_PLAN, is_out_of_question, plan_at
from router.core.ollama.bookkeeping import believed_free_bounds, less_booked, live_free, stakes
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from tests.core.decision.test_policy_properties import FACTS, worlds

CONTEXTS = (4096, 8192, 32768)
SETTINGS = st.builds(ServerSettings, max_loaded_models=st.sampled_from([0, 2]), sched_spread=st.booleans())


@given(worlds(splits=True), SETTINGS, st.sets(st.sampled_from(FACTS), max_size=2))
def test_plans_that_share_the_books_of_a_snapshot_are_those_of_each_alone(snapshot, settings, spared):
    """For every model and context, in turn; where there is none, the reason is left out only if nobody asks for it."""
    rules, shared = MachineRules(settings), Books.of(snapshot)
    spared = frozenset(facts.weights for facts in spared)
    for facts in FACTS:
        for num_ctx in CONTEXTS:
            options = LoadOptions(num_ctx=num_ctx, num_batch=512)
            alone = plan_at(facts, options, snapshot, rules, may_pin=True, spared=spared)
            explained = plan_at(facts, options, snapshot, rules, may_pin=True, spared=spared, books=shared)
            found = plan_at(
                facts, options, snapshot, rules, may_pin=True, spared=spared, books=shared, is_explained=False
            )
            assert explained == alone
            assert found == alone if isinstance(alone, Plan) else not isinstance(found, Plan)


@given(worlds(splits=True), SETTINGS, st.sets(st.sampled_from(FACTS), max_size=3), st.booleans())
def test_where_no_plan_comes_into_question_a_search_finds_none_for_any_larger_context(
    snapshot, settings, spared, may_pin
):
    """The short cut before the search never hides a plan that keeps company."""
    rules, books = MachineRules(settings), Books.of(snapshot)
    spared = frozenset(facts.weights for facts in spared)
    for facts in FACTS:
        for at, num_ctx in enumerate(CONTEXTS):
            options = LoadOptions(num_ctx=num_ctx, num_batch=512)
            if is_out_of_question(facts, options, rules, books, may_pin=may_pin, spared=spared):
                larger = (LoadOptions(num_ctx=one, num_batch=512) for one in CONTEXTS[at:])
                found = [plan_at(facts, one, snapshot, rules, may_pin=may_pin, spared=spared) for one in larger]
                assert not any(isinstance(one, Plan) for one in found)


@given(worlds(splits=True))
def test_bounds_of_what_ollama_believes_are_those_of_its_rules_card_by_card(snapshot):
    """The least and the most that any resident reports, and no more than the total less all that is booked."""
    books, gpus = Books.of(snapshot), snapshot.gpus
    low, high = list(books.most.values()), list(books.least.values())
    found = believed_free_bounds(gpus, [stakes(gpus, *pair) for pair in zip(low, high, strict=True)])
    figures = [
        [(one.reported_free_bytes(at, gpu.total_bytes), other.reported_free_bytes(at, gpu.total_bytes))
         for one, other in zip(low, high, strict=True) if at in one.cards]
        for at, gpu in enumerate(gpus)
    ]  # fmt: skip
    if all(figures):
        least, most = tuple(min(one)[0] for one in figures), tuple(max(y for _, y in one) for one in figures)
    else:
        least = most = live_free(gpus)
    assert found == (less_booked(gpus, least, low), less_booked(gpus, most, high))


def test_a_shortage_that_nobody_asks_for_says_nothing():
    """It stands for any."""
    assert (NO_PLAN.need_bytes, NO_PLAN.have_bytes) == (0, 0)
