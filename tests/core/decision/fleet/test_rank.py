"""The order of places: a bigger variant first wherever it fits, never a spill, the same order for the same state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.core.decision.chain import Variant
from router.core.decision.fleet.holders import Holders, bound
from router.core.decision.fleet.offer import Offer, Tier
from router.core.decision.fleet.rank import COPY_MARGIN_S, rank
from router.core.decision.fleet.rendezvous import ordered
from router.core.decision.plan import Plan
from router.core.decision.verdict import USABLE, Decision, Outcome, Verdict, VerdictKind
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB

CHAIN = ("big", "middle", "small")
K = VerdictKind


def decision(position, kind, *, cost_s=5.0, evicts=0):
    """A decision whose variants before `position` are too big."""
    verdicts = [Verdict(Variant(name), K.TOO_BIG) for name in CHAIN[:position]]
    if kind is None:
        return Decision(Outcome.REJECTED, None, tuple(Verdict(Variant(name), K.TOO_BIG) for name in CHAIN))
    plan = None
    if kind in (K.FITS, K.TRIES, K.WAITS):
        plan = Plan(LoadOptions(), tuple(map(str, range(evicts))), (), (0,), 1, 1)
    chosen = Verdict(Variant(CHAIN[position]), kind, plan=plan, cost_s=cost_s)
    outcome = Outcome.EXACT if position == 0 else Outcome.FALLBACK
    return Decision(outcome, chosen, (*verdicts, chosen))


def offer(place, kind=K.FITS, position=0, **more):
    inner = {key: more.pop(key) for key in ("cost_s", "evicts") if key in more}
    return Offer(place, decision(position, kind, **inner), **more)


def order(*offers, conversation=0):
    return [one.place for one in rank(offers, conversation)]


KINDS = st.sampled_from([K.RESIDENT, K.LOADING, K.FITS, K.TRIES, K.WAITS, None])
OFFERS = st.lists(
    st.builds(
        offer,
        st.integers(0, 99).map("p{}".format),
        KINDS,
        st.integers(0, 2),
        load=st.integers(0, 20),
        busy=st.integers(0, 20),
        wait_s=st.floats(0, 100),
        queue_s=st.floats(0, 100),
        card_bytes=st.sampled_from([8 * GIB, 24 * GIB]),
        away=st.sampled_from(["", "", "", "it is away"]),
        cost_s=st.floats(0, 60),
        evicts=st.integers(0, 2),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.place,
)


@given(OFFERS, st.integers(0, 1 << 56))
def test_a_bigger_variant_that_can_be_served_anywhere_is_never_passed_over(offers, conversation):
    """Whatever the loads, waits and costs are; and what would spill, or is away, comes after all that can serve."""
    ranked = rank(offers, conversation)
    assert sorted(one.place for one in ranked) == sorted(one.place for one in offers)
    able = [one.offer.position for one in ranked if one.is_usable]
    assert able == sorted(able)
    assert [one.is_usable for one in ranked] == sorted((one.is_usable for one in ranked), reverse=True)
    for one in ranked:
        assert one.reason
        if one.is_usable:
            assert one.offer.chosen.kind in USABLE
            assert not one.offer.away


@given(OFFERS, st.integers(0, 1 << 56), st.randoms())
def test_the_order_depends_on_the_state_alone(offers, conversation, random):
    """Not on the order in which the places are listed."""
    shuffled = list(offers)
    random.shuffle(shuffled)
    assert order(*offers, conversation=conversation) == order(*shuffled, conversation=conversation)


def test_within_a_variant_the_sooner_comes_first():
    """Resident, loading, beside, after idle evictions, tried, once busy ones are idle."""
    offers = [
        offer("waits", K.WAITS),
        offer("tries", K.TRIES),
        offer("evicts", evicts=1),
        offer("beside"),
        offer("loading", K.LOADING, wait_s=4),
        offer("holds", K.RESIDENT),
    ]
    assert order(*offers) == ["holds", "loading", "beside", "evicts", "tries", "waits"]
    assert [one.tier for one in rank(offers)] == list(Tier)


def test_a_further_copy_only_if_waiting_is_dearer_than_loading():
    """By a margin."""
    assert order(offer("holds", K.RESIDENT, wait_s=5 + COPY_MARGIN_S), offer("copy", cost_s=5)) == ["holds", "copy"]
    assert order(offer("holds", K.RESIDENT, wait_s=7), offer("copy", cost_s=5)) == ["copy", "holds"]
    assert order(offer("holds", K.RESIDENT, wait_s=7), offer("copy", cost_s=5, queue_s=9)) == ["holds", "copy"]


def test_the_smallest_card_that_can_take_it_does_unless_it_has_too_much_to_do():
    """So that the big ones stay free."""
    small, big = offer("small", card_bytes=12 * GIB), offer("big", card_bytes=24 * GIB)
    assert order(big, small) == ["small", "big"]
    assert order(big, offer("small", card_bytes=12 * GIB, busy=9)) == ["big", "small"]


def test_a_conversation_stays_on_its_holder_until_that_is_over_the_bound():
    """Then the less loaded of the next two takes it."""
    holders, load = Holders(("a", "b", "c")), dict.fromkeys("abc", 0)
    first = holders.pick(7, load.__getitem__)
    load[first] = 1
    assert holders.pick(7, load.__getitem__) == first
    load[first] = 3
    assert load[first] > bound(list(load.values()))
    assert holders.pick(7, load.__getitem__) != first


def test_without_a_conversation_the_least_loaded_holder_is_picked():
    """An embedding, say."""
    load = {"a": 2, "b": 0, "c": 1}
    assert Holders(tuple(load)).pick(0, load.__getitem__) == "b"


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(0, 1 << 56))
def test_the_picked_holder_is_never_over_the_bound_while_others_are_below_the_mean(loads, conversation):
    """So no conversation can fill one place while others are idle."""
    load = {f"p{number}": count for number, count in enumerate(loads)}
    picked = Holders(tuple(load)).pick(conversation, load.__getitem__)
    if len(loads) <= 3 and load[picked] > bound(loads):
        raise AssertionError(load)


@given(st.sets(st.integers(0, 200).map("p{}".format), min_size=2), st.integers(0, 1 << 56))
def test_a_place_that_goes_moves_only_what_it_had(places, key):
    """The others keep their order."""
    before = ordered(key, places)
    gone = before[0]
    assert ordered(key, places - {gone}) == before[1:]
