"""What holds of the rules of the line for every queue, whatever is loaded."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.core.decision.groups import Patience, wanted_weights
from router.core.decision.turns import Turns, turns
from router.core.decision.verdict import VerdictKind
from tests.core.decision.queue_states import AGE_BOUND_S, COUNT, NOW_S, PATIENCE, REFUSED, Loaded, loads, ticket, uses
from tests.core.facts import facts_of

FACTS = [facts_of(f"m{size}:{size}b", size) for size in (40, 26, 18, 9, 5, 2)]


@st.composite
def queues(draw):
    """Tickets, residents (weights → Loaded), and the weights that requests let in before are about to use.

    Equal demands have equal decisions, as in a real line.
    """
    order = draw(st.permutations(FACTS))
    loaded = order[: draw(st.integers(0, 4))]
    residents = {facts.weights: Loaded(number, draw(st.integers(0, 2 * COUNT))) for number, facts in enumerate(loaded)}
    busy = {weights for weights in residents if draw(st.booleans())}
    decisions = [uses(facts) for facts in loaded] + [REFUSED]
    for facts in order[len(loaded) :]:
        evicts = [weights for weights in residents if draw(st.booleans())]
        waits_for = [weights for weights in evicts if weights in busy]
        decisions.append(loads(facts, evicts=evicts, waits_for=waits_for, num_ctx=draw(st.sampled_from([8192, 32768]))))
    waiting = [
        ticket(
            number,
            draw(st.sampled_from(decisions)),
            age_s=draw(st.floats(0, 2 * AGE_BOUND_S)),
            is_due=draw(st.booleans()),
            served_before={one.order: draw(st.integers(0, one.served)) for one in residents.values()},
        )
        for number in range(draw(st.integers(0, 8)))
    ]
    entering = frozenset(weights for weights in residents if draw(st.integers(0, 3)) == 0)
    return waiting, residents, entering


switches = st.none() | st.frozensets(st.sampled_from([facts.weights for facts in FACTS]))


def applied(queue, now_s=NOW_S, patience=PATIENCE, closed_by_switch=None):
    waiting, residents, entering = queue
    return turns(waiting, residents, now_s, patience, entering=entering, closed_by_switch=closed_by_switch)


def is_for_a_resident(waiting):
    return waiting.decision.chosen is not None and waiting.decision.chosen.kind is VerdictKind.RESIDENT


def loading_groups(waiting):
    """Weights that must be loaded → the tickets that wait for them."""
    groups = {}
    for one in waiting:
        if one.decision.chosen is not None and one.decision.chosen.plan is not None:
            groups.setdefault(one.weights, []).append(one)
    return groups


def impatient_since(tickets, residents):
    """Since when the oldest ticket has waited if its group is impatient, by the words of rule 5; None if it is not."""
    oldest = min(tickets, key=lambda one: one.since_s)
    in_the_way = [residents[weights] for weights in oldest.decision.chosen.plan.evict]
    overtaken = sum(one.served - oldest.served_before[one.order] for one in in_the_way)
    return oldest.since_s if NOW_S - oldest.since_s >= AGE_BOUND_S or overtaken >= COUNT else None


@given(queues(), switches)
def test_nobody_who_is_due_is_left_out(queue, closed_by_switch):
    """Every ticket whose model was loaded while it waited is let in to it, whatever is closed."""
    due = {one.number for one in queue[0] if one.is_due and is_for_a_resident(one)}
    assert due <= set(applied(queue, closed_by_switch=closed_by_switch).let_in)


@given(queues(), switches)
def test_nobody_else_is_let_in_to_what_is_closed(queue, closed_by_switch):
    """Who is let in to a resident is due, or the resident is open."""
    found = applied(queue, closed_by_switch=closed_by_switch)
    for one in queue[0]:
        if one.number in found.let_in and is_for_a_resident(one):
            assert one.is_due or one.weights not in found.closed


@given(queues())
def test_closed_are_exactly_the_residents_in_the_way_of_the_first_impatient_group(queue):
    """Nothing where nobody is impatient."""
    waiting, residents, _ = queue
    since = {weights: impatient_since(group, residents) for weights, group in loading_groups(waiting).items()}
    impatient = {weights: since_s for weights, since_s in since.items() if since_s is not None}
    found = applied(queue)
    if not impatient:
        assert found.closed == frozenset()
        return
    first_s = min(impatient.values())
    plans = [loading_groups(waiting)[weights][0].decision.chosen.plan for weights in impatient]
    firsts = [plan for plan, since_s in zip(plans, impatient.values(), strict=True) if since_s == first_s]
    assert found.closed in [frozenset(plan.evict) for plan in firsts]


@given(queues())
def test_what_is_started_evicts_nothing_that_is_used_or_about_to_be(queue):
    """Neither a busy resident, nor one that a request was let in to, now or before."""
    waiting, _, entering = queue
    found = applied(queue)
    if found.start is None:
        return
    plan = found.start.chosen.plan
    about_to_be_used = entering | {one.weights for one in waiting if one.number in found.let_in}
    assert plan.waits_for == ()
    assert about_to_be_used.isdisjoint(plan.evict)


@given(queues())
def test_a_line_where_something_waits_for_a_load_never_sleeps(queue):
    """Either a load is started or a time to look again is named, and never both."""
    found = applied(queue)
    assert (found.start is not None or found.look_again_s is not None) == bool(loading_groups(queue[0]))
    assert found.start is None or found.look_again_s is None


@given(queues())
def test_the_same_tickets_are_never_let_in_twice_and_never_started_as_well(queue):
    """A ticket is let in, or waits for the load that is started, or stays."""
    found = applied(queue)
    assert len(set(found.let_in)) == len(found.let_in)
    let_in = [one for one in queue[0] if one.number in found.let_in]
    assert not any(one.decision is found.start for one in let_in)


@given(queues())
def test_without_tickets_nothing_happens(queue):
    """Residents alone cause nothing."""
    assert applied(([], queue[1], queue[2])) == Turns((), frozenset())


@given(queues(), st.floats(0, 3 * AGE_BOUND_S))
def test_monotone_in_age_what_is_closed_stays_closed(queue, later_s):
    """Where only age counts, time that passes opens nothing that waiting has closed."""
    by_age = Patience(AGE_BOUND_S)
    now, later = (applied(queue, now_s, by_age) for now_s in (NOW_S, NOW_S + later_s))
    assert now.closed <= later.closed


@given(queues(), st.integers(0, 7), st.floats(0, 3 * AGE_BOUND_S))
def test_monotone_in_age_an_older_ticket_is_served_no_later(queue, index, older_s):
    """What was started for a ticket would be started for it too had it come earlier."""
    waiting, residents, entering = queue
    start = applied(queue).start
    if start is None or index >= len(waiting) or waiting[index].weights != wanted_weights(start):
        return
    aged = list(waiting)
    aged[index] = replace(aged[index], since_s=aged[index].since_s - older_s)
    assert applied((aged, residents, entering)).start == start
