"""Whose turn it is, rule by rule."""

from router.core.decision.chain import Variant
from router.core.decision.groups import OTHERS_SHARE, Patience, wanted_weights
from router.core.decision.turns import LOOK_AGAIN_S, Turns, turns
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind
from tests.core.decision.queue_states import (
    AGE_BOUND_S,
    BIG,
    COUNT,
    MIDDLE,
    NOW_S,
    PATIENCE,
    REFUSED,
    SMALL,
    TINY,
    Loaded,
    awaits,
    loads,
    ticket,
    uses,
)

OLD_S = AGE_BOUND_S + 1


def at_once(*waiting, residents=(), patience=PATIENCE, **more):
    """What the rules say now of these tickets and residents (facts → Loaded)."""
    loaded = {facts.weights: state for facts, state in dict(residents).items()}
    return turns(waiting, loaded, NOW_S, patience, **more)


def started(found):
    return found.start.chosen.facts if found.start is not None else None


def test_an_empty_line_changes_nothing():
    """Nobody waits: nothing is closed, started or looked at again."""
    assert at_once(residents={BIG: Loaded()}) == Turns((), frozenset())


def test_rule_1_tickets_for_the_same_weights_and_context_wait_for_one_load():
    """The oldest ticket's age counts for everybody who waits for the same load, at another context it does not."""
    old, young = loads(MIDDLE, evicts=[BIG.weights]), loads(MIDDLE, evicts=[SMALL.weights], num_ctx=32768, cards=(1,))
    residents = {BIG: Loaded(1), SMALL: Loaded(2)}
    found = at_once(ticket(0, young), ticket(1, old, age_s=OLD_S), ticket(2, old), residents=residents)
    assert (found.start, found.closed) == (old, {BIG.weights})


def test_rule_2_a_ticket_whose_model_was_loaded_while_it_waited_is_let_in_though_the_model_is_closed():
    """One that came later is not."""
    impatient = ticket(0, loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights]), age_s=OLD_S)
    found = at_once(impatient, ticket(1, uses(SMALL), is_due=True), ticket(2, uses(SMALL)), residents={SMALL: Loaded()})
    assert (found.let_in, found.closed) == ((1,), {SMALL.weights})


def test_rule_2_holds_during_a_switch():
    """A switch that has closed the model does not keep the ticket out either."""
    closed = frozenset({SMALL.weights})
    found = at_once(ticket(1, uses(SMALL), is_due=True), ticket(2, uses(SMALL)), closed_by_switch=closed)
    assert found == Turns((1,), closed)


def test_rule_3_tickets_for_a_resident_are_let_in():
    """All of them at once, whatever else waits."""
    found = at_once(
        ticket(0, loads(BIG, evicts=[SMALL.weights])),
        ticket(1, uses(SMALL)),
        ticket(2, uses(TINY)),
        ticket(3, uses(SMALL)),
        residents={SMALL: Loaded(1), TINY: Loaded(2)},
    )
    assert sorted(found.let_in) == [1, 2, 3]


def test_rule_3_during_a_switch_only_what_it_has_closed_is_kept_out():
    """Residents that stay go on serving."""
    found = at_once(ticket(0, uses(SMALL)), ticket(1, uses(TINY)), closed_by_switch=frozenset({SMALL.weights}))
    assert found.let_in == (1,)


def test_rule_3_a_resident_that_gives_way_to_others_lets_nobody_in():
    """Neither during a switch; what was loaded for a ticket serves it (rule 2)."""
    waiting = ticket(0, uses(SMALL)), ticket(1, uses(TINY)), ticket(2, uses(SMALL), is_due=True)
    for closed in (None, frozenset()):
        found = at_once(*waiting, giving_way=frozenset({SMALL.weights}), closed_by_switch=closed)
        assert sorted(found.let_in) == [1, 2]
    assert at_once(ticket(0, uses(SMALL)), giving_way=frozenset({SMALL.weights})).closed == frozenset()


def test_a_ticket_for_what_is_being_loaded_waits():
    """It is neither let in nor the cause of another load."""
    assert at_once(ticket(0, awaits(BIG))) == Turns((), frozenset())
    assert at_once(ticket(0, awaits(BIG)), closed_by_switch=frozenset()).let_in == ()


def test_rule_4_what_nothing_can_serve_is_let_in_to_be_refused():
    """At once, and it starts nothing."""
    assert at_once(ticket(0, REFUSED)) == Turns((0,), frozenset())


def test_rule_4_nobody_is_refused_during_a_switch():
    """Memory is on its way: what does not fit now may fit in a moment."""
    assert at_once(ticket(0, REFUSED), closed_by_switch=frozenset()).let_in == ()


def test_rule_5_a_group_turns_impatient_at_the_age_bound():
    """From then on the residents in its way take no new requests; a moment earlier they do."""
    for age_s, closed in ((AGE_BOUND_S - 0.1, set()), (AGE_BOUND_S, {SMALL.weights})):
        waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights])
        found = at_once(ticket(0, waits, age_s=age_s), ticket(1, uses(SMALL)), residents={SMALL: Loaded()})
        assert found.closed == closed
        assert (1 in found.let_in) is not bool(closed)


def test_rule_5_a_group_turns_impatient_when_it_was_overtaken_too_often():
    """Only what residents in its way have served since it came counts."""
    waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights])
    for served, closed in ((COUNT - 1, set()), (COUNT, {SMALL.weights})):
        waiting = ticket(0, waits, served_before={1: 5, 2: 0})
        residents = {SMALL: Loaded(1, served=5 + served), TINY: Loaded(2, served=1000)}
        assert at_once(waiting, residents=residents).closed == closed


def test_rule_5_a_resident_loaded_after_the_ticket_came_has_overtaken_it_with_all_that_it_served():
    """A count that the ticket has for an earlier load of the same model does not apply."""
    waits = loads(BIG, evicts=[SMALL.weights, TINY.weights], waits_for=[SMALL.weights])
    waiting = ticket(0, waits, served_before={1: 1000})
    assert at_once(waiting, residents={SMALL: Loaded(2, served=COUNT)}).closed == {SMALL.weights, TINY.weights}


def test_rule_5_a_group_is_patient_for_a_multiple_of_what_its_switch_costs():
    """Where a switch takes long, more requests for what is loaded are served before it."""
    patience = Patience(AGE_BOUND_S, cost_factor=3.0)
    waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights], cost_s=8.0)
    for age_s, closed in ((23.9, set()), (24.0, {SMALL.weights})):
        found = at_once(ticket(0, waits, age_s=age_s), residents={SMALL: Loaded()}, patience=patience)
        assert found.closed == closed


def test_rule_5_the_switches_that_others_wait_for_on_the_same_card_count_a_third():
    """Else many models that are waited for would each close what is loaded after a little while."""
    busy = {TINY: Loaded(1)}
    plan = {"evicts": [TINY.weights], "waits_for": [TINY.weights], "cost_s": 6}
    alone_s, other_s = 3 * 6, 6
    first = loads(BIG, **plan)

    def closes(age_s, *others):
        return bool(at_once(ticket(0, first, age_s=age_s), *others, residents=busy).closed)

    beside, apart = (
        ticket(1, loads(MIDDLE, **plan)),
        ticket(1, loads(MIDDLE, **{**plan, "evicts": [], "waits_for": []}, cards=(1,))),
    )
    assert closes(alone_s)
    assert not closes(alone_s, beside)
    assert closes(alone_s + other_s, beside)
    assert closes(alone_s, apart)


def test_rule_5_no_switch_costs_so_much_that_its_group_is_refused_before_it_turns_impatient():
    """By its cost it would wait for ten minutes."""
    patience = Patience(AGE_BOUND_S, cost_factor=3.0, most_s=150.0)
    waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights], cost_s=200.0)
    for age_s, closed in ((149.9, set()), (150.0, {SMALL.weights})):
        found = at_once(ticket(0, waits, age_s=age_s), residents={SMALL: Loaded()}, patience=patience)
        assert found.closed == closed


def test_rule_5_by_default_any_number_of_requests_may_overtake_within_the_bound():
    """Requests differ too much in length for their number to say anything."""
    waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights])
    residents = {SMALL: Loaded(1, served=10**6)}
    found = at_once(ticket(0, waits, served_before={1: 0}), residents=residents, patience=Patience(AGE_BOUND_S))
    assert found.closed == frozenset()


def test_rule_5_only_the_first_impatient_group_of_a_card_closes_residents():
    """One switch at a time: what stands in the way of the second goes on serving."""
    first = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights])
    second = loads(MIDDLE, evicts=[TINY.weights], waits_for=[TINY.weights])
    found = at_once(
        ticket(0, second, age_s=OLD_S),
        ticket(1, first, age_s=OLD_S + 1),
        ticket(2, uses(TINY)),
        residents={SMALL: Loaded(1), TINY: Loaded(2)},
    )
    assert (found.closed, found.let_in) == ({SMALL.weights}, (2,))


def test_rule_5_closes_what_ollama_may_evict_too():
    """Without a probe a load may wait for a resident that it does not evict; that one must become idle all the same."""
    unproven = loads(BIG, evicts=[], waits_for=[SMALL.weights])
    found = at_once(ticket(0, unproven, age_s=OLD_S), ticket(1, uses(SMALL)), residents={SMALL: Loaded()})
    assert (found.let_in, found.closed, found.start) == ((), {SMALL.weights}, None)


def test_rule_6_of_impatient_groups_with_equal_bounds_the_older_goes_first():
    """The oldest ticket of each counts, not how many wait."""
    found = at_once(
        *(ticket(number, loads(TINY)) for number in range(5)),
        ticket(5, loads(MIDDLE), age_s=OLD_S),
        ticket(6, loads(BIG), age_s=OLD_S + 1),
    )
    assert started(found) is BIG


def waits_for_bounds(number, facts, times, cost_s, other_s):
    """A ticket that has waited for so many times its bound beside another one, for a switch that costs `other_s`."""
    bound_s = max(AGE_BOUND_S, PATIENCE.cost_factor * (cost_s + OTHERS_SHARE * other_s))
    return ticket(number, loads(facts, cost_s=cost_s), age_s=times * bound_s)


def test_rule_6_who_has_waited_for_more_times_its_bound_goes_before_an_older_one():
    """The bound of a cheap switch is short, and who waits for it delays the others little."""
    cheap, dear = waits_for_bounds(0, SMALL, 1.6, 2, 20), waits_for_bounds(1, BIG, 1.5, 20, 2)
    assert started(at_once(cheap, dear)) is SMALL
    assert started(at_once(cheap, waits_for_bounds(1, BIG, 1.7, 20, 2))) is BIG


def test_rule_6_from_twice_its_bound_on_an_older_one_is_overtaken_by_nobody():
    """Else many cheap switches could go before a dear one again and again."""
    cheap, dear = waits_for_bounds(0, SMALL, 4, 2, 40), waits_for_bounds(1, BIG, 2.01, 40, 2)
    assert started(at_once(cheap, dear)) is BIG


def test_rule_6_of_the_patient_the_most_tickets_per_second_of_the_switch_go_first():
    """Many for a big model go before one for a small one, until the seconds outweigh them."""
    small, big = ticket(0, loads(SMALL, cost_s=2), age_s=5), loads(BIG, cost_s=10)
    assert started(at_once(small, *(ticket(n, big) for n in range(1, 7)))) is BIG
    assert started(at_once(small, *(ticket(n, big) for n in range(1, 4)))) is SMALL


def test_rule_7_a_plan_that_waits_for_a_busy_resident_lets_the_next_one_start():
    """While nobody is impatient nothing is held back for it."""
    found = at_once(
        ticket(0, loads(TINY, evicts=[BIG.weights], waits_for=[BIG.weights])),
        ticket(1, loads(SMALL)),
        residents={BIG: Loaded()},
    )
    assert started(found) is SMALL


def test_rule_7_nothing_is_evicted_that_a_request_was_just_let_in_to():
    """Neither by this application of the rules nor by an earlier one."""
    waits = ticket(0, loads(BIG, evicts=[SMALL.weights]))
    residents = {SMALL: Loaded()}
    assert started(at_once(waits, residents=residents)) is BIG
    assert started(at_once(waits, ticket(1, uses(SMALL)), residents=residents)) is None
    assert started(at_once(waits, residents=residents, entering=frozenset({SMALL.weights}))) is None


BUSY = ticket(0, loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights]), age_s=OLD_S + 1)


def test_rule_7_a_model_is_loaded_with_the_largest_context_that_others_wait_for():
    """One load serves both, though the smaller context was asked for first."""
    small, large = loads(BIG, num_ctx=4096), loads(BIG, num_ctx=16384, evicts=[TINY.weights])
    found = at_once(ticket(0, small, age_s=OLD_S), ticket(1, large), residents={TINY: Loaded()})
    assert found.start == large


def test_rule_7_holds_for_a_load_that_names_its_card():
    """As every load of a model on one of several cards does."""
    small, large = (loads(BIG, num_ctx=num_ctx, cards=(1,), main_gpu=1) for num_ctx in (4096, 16384))
    assert at_once(ticket(0, small, age_s=OLD_S), ticket(1, large)).start == large


def test_rule_7_a_larger_context_that_cannot_be_loaded_now_keeps_nobody_waiting():
    """It waits for a busy resident, or evicts one that a request was just let in to, or lies on other cards."""
    small = loads(BIG, num_ctx=4096, cards=(0,))
    for large in (
        loads(BIG, num_ctx=16384, evicts=[TINY.weights], waits_for=[TINY.weights]),
        loads(BIG, num_ctx=16384, evicts=[SMALL.weights]),
        loads(BIG, num_ctx=16384, cards=(0, 1)),
    ):
        waiting = ticket(0, small, age_s=OLD_S), ticket(1, large), ticket(2, uses(SMALL))
        assert at_once(*waiting, residents={TINY: Loaded(1), SMALL: Loaded(2)}).start == small


def test_rule_7_another_model_is_never_loaded_in_place_of_the_first_in_order():
    """However large the context is that it is waited for with."""
    first = loads(BIG, num_ctx=4096)
    assert at_once(ticket(0, first, age_s=OLD_S), ticket(1, loads(MIDDLE, num_ctx=32768))).start == first


def test_rule_6_those_that_one_load_serves_count_together():
    """Two that wait for one model with different contexts come before one that waits for another."""
    alone = ticket(0, loads(MIDDLE, cost_s=4.0, evicts=[TINY.weights]))
    both = ticket(1, loads(BIG, num_ctx=4096, cost_s=5.0)), ticket(2, loads(BIG, num_ctx=8192, cost_s=5.0))
    assert started(at_once(alone, both[0], residents={TINY: Loaded()})) == MIDDLE
    assert at_once(alone, *both, residents={TINY: Loaded()}).start == both[1].decision


def test_rule_8_nothing_that_evicts_on_the_same_card_is_started_before_an_impatient_group():
    """It would take the memory that the impatient group waits for."""
    evicts = loads(TINY, evicts=[MIDDLE.weights])
    residents = {SMALL: Loaded(1), MIDDLE: Loaded(2)}
    for other in (ticket(1, evicts), ticket(1, evicts, age_s=OLD_S)):
        assert started(at_once(BUSY, other, residents=residents)) is None


def test_rule_8_a_load_on_another_card_is_started_meanwhile():
    """A long answer on one card holds up nobody on the other, whether patient or not."""
    residents = {SMALL: Loaded(1), MIDDLE: Loaded(2)}
    for age_s in (0.0, OLD_S):
        evicts = loads(TINY, evicts=[MIDDLE.weights], cards=(1,))
        assert started(at_once(BUSY, ticket(1, evicts, age_s=age_s), residents=residents)) is TINY


def test_rule_8_an_impatient_group_on_another_card_closes_its_own_residents():
    """A split over both cards meets each of them."""
    residents = {SMALL: Loaded(1), MIDDLE: Loaded(2)}
    for cards, closed in (((1,), {SMALL.weights, MIDDLE.weights}), ((0, 1), {SMALL.weights})):
        other = loads(TINY, evicts=[MIDDLE.weights], waits_for=[MIDDLE.weights], cards=cards)
        assert at_once(BUSY, ticket(1, other, age_s=OLD_S), residents=residents).closed == closed


def test_rule_8_where_no_card_is_known_every_load_meets_every_other():
    """Without a probe nobody knows whose memory a load takes."""
    residents = {SMALL: Loaded(1)}
    assert started(at_once(BUSY, ticket(1, loads(TINY, cards=())), residents=residents)) is None


def test_rule_9_what_fits_beside_is_loaded_while_an_impatient_group_waits_for_a_long_answer():
    """Until that group has waited for twice its bound: then nothing takes its memory any more."""
    for age_s, loaded in ((2 * AGE_BOUND_S - 0.1, TINY), (2 * AGE_BOUND_S, None)):
        busy = ticket(0, loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights]), age_s=age_s)
        assert started(at_once(busy, ticket(1, loads(TINY)), residents={SMALL: Loaded()})) is loaded


def test_rule_10_the_line_is_looked_at_again_when_the_next_ticket_turns_impatient():
    """The oldest that waits for a load decides; those that wait for something else do not."""
    waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights])
    found = at_once(ticket(0, waits, age_s=3), ticket(1, waits, age_s=1), ticket(2, awaits(TINY), age_s=9))
    assert found.look_again_s == AGE_BOUND_S - 3


def test_rule_10_an_impatient_line_is_looked_at_again_after_a_short_pause():
    """Never at once, or it would be looked at without end."""
    waits = loads(BIG, evicts=[SMALL.weights], waits_for=[SMALL.weights])
    assert at_once(ticket(0, waits, age_s=1000)).look_again_s == LOOK_AGAIN_S


def test_rule_10_where_something_starts_nothing_is_looked_at_again():
    """The end of the switch applies the rules."""
    assert at_once(ticket(0, loads(TINY)), ticket(1, loads(BIG))).look_again_s is None


def test_nothing_starts_and_nobody_turns_impatient_during_a_switch():
    """Rules 5 to 10 wait for its end."""
    closed = frozenset({TINY.weights})
    found = at_once(ticket(0, loads(BIG), age_s=1000), residents={SMALL: Loaded()}, closed_by_switch=closed)
    assert found == Turns((), closed)


def test_what_a_decision_waits_for():
    """The resident's weights, the weights to load, or nothing."""
    nameless = Verdict(Variant("x"), VerdictKind.FITS)
    assert wanted_weights(uses(BIG)) == wanted_weights(loads(BIG)) == BIG.weights
    assert wanted_weights(REFUSED) == wanted_weights(Decision(Outcome.EXACT, nameless, (nameless,))) == ""
