"""Which residents go: the cheapest of all sets, on machines with many cards and residents."""

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.decision.need import MachineRules
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import Plan, Shortage, plan_at
from router.core.decision.victims import MOST_CHOICES, Demand, cheapest_sets, cost_of
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB
from tests.core.facts import catalog_of, facts_of, gpu_of, resident_of

BASE = LoadOptions(num_ctx=8192, num_batch=512)
RULES = MachineRules(ServerSettings(max_loaded_models=100))
SMALL = [facts_of(f"small{number}:{size}b", size) for number, size in enumerate((1, 2, 3, 4, 6, 8) * 4)]
NEW = facts_of("new:9b", 9)


@st.composite
def crowds(draw, *, most_cards=8, most_residents=12, may_be_kept=True):
    """Draw cards with many residents on one card each, loaded one after the other, and no other programs."""
    totals = draw(st.lists(st.sampled_from([12, 24, 32]), min_size=1, max_size=most_cards))
    left, residents = list(totals), []
    for order, facts in enumerate(SMALL[: draw(st.integers(1, most_residents))]):
        card = draw(st.integers(0, len(totals) - 1))
        held = facts.size_bytes / GIB + 1
        if held <= left[card]:
            left[card] -= held
            residents.append(
                resident_of(
                    facts, held_gib=held, card=card, order=order, free_at_load_gib=left[card] + held,
                    in_flight=draw(st.integers(0, 1)), wanted=draw(st.integers(0, 1)),
                    kept=may_be_kept and draw(st.integers(0, 4)) == 0,
                )
            )  # fmt: skip
    gpus = tuple(gpu_of(*card) for card in zip(range(len(left)), totals, left, strict=True))
    return Snapshot(gpus, tuple(residents), catalog=catalog_of(NEW))


def plan(snapshot, facts=NEW, spared=frozenset()):
    return plan_at(facts, BASE, snapshot, RULES, may_pin=True, spared=spared)


def cost(snapshot, evict):
    return sum(cost_of(one) for one in snapshot.residents if one.weights in evict)


newcomers = st.sampled_from([NEW, facts_of("new:20b", 20), facts_of("new:30b", 30), facts_of("new:60b", 60)])


@settings(deadline=None)
@given(crowds(), newcomers, st.randoms())
def test_the_order_of_residents_has_no_effect(snapshot, facts, random):
    """The same residents in another order give the same plan."""
    shuffled = list(snapshot.residents)
    random.shuffle(shuffled)
    assert plan(replace(snapshot, residents=tuple(shuffled)), facts) == plan(snapshot, facts)


@settings(deadline=None)
@given(crowds(), newcomers)
def test_nobody_waits_and_no_kept_model_goes_where_idle_victims_would_do(snapshot, facts):
    """If the model can be loaded once all residents but the kept and busy ones are gone, no other is evicted."""
    last = frozenset(one.weights for one in snapshot.residents if one.kept or one.in_flight)
    idle = [one for one in snapshot.residents if one.weights not in last]
    gpus = tuple(
        replace(gpu, free_bytes=gpu.free_bytes + sum(one.held_bytes.get(gpu.index, 0) for one in idle))
        for gpu in snapshot.gpus
    )
    stay = tuple(one for one in snapshot.residents if one.weights in last)
    without = plan_at(facts, BASE, replace(snapshot, gpus=gpus, residents=stay), RULES, may_pin=True, spared=last)
    found = plan(snapshot, facts)
    if isinstance(without, Plan):
        assert not last.intersection(found.evict)
    elif isinstance(found, Shortage):
        assert isinstance(without, Shortage)


@settings(deadline=None, max_examples=60)
@given(crowds(most_cards=3, most_residents=6), newcomers)
def test_no_other_set_of_victims_is_cheaper(snapshot, facts):
    """Every set of residents is tried: the plan's is the cheapest of those after which the model can be loaded."""
    found = plan(snapshot, facts)
    names = [one.weights for one in snapshot.residents]
    for evicted in (set(some) for count in range(len(names) + 1) for some in combinations(names, count)):
        others = plan(snapshot, facts, spared=frozenset(names) - evicted)
        if isinstance(others, Plan):
            assert isinstance(found, Plan)
            assert cost(snapshot, found.evict) <= cost(snapshot, others.evict)


def test_eight_cards_each_with_a_model_and_the_youngest_busy_evict_an_idle_one():
    """Nobody waits for the youngest while seven others do nothing."""
    for count in (7, 8):
        residents = [
            resident_of(facts_of(f"r{card}:10b", 10), card=card, order=card, held_gib=12, free_at_load_gib=16)
            for card in range(count)
        ]
        residents[-1] = replace(residents[-1], in_flight=1)
        gpus = tuple(gpu_of(card, 16, 4) for card in range(count))
        found = plan(Snapshot(gpus, tuple(residents)))
        assert found.waits_for == ()
        assert found.evict == (residents[-2].weights,)


def test_victims_on_the_cards_of_others_stay():
    """Only residents of the plan's own card go, though the youngest is elsewhere."""
    one = resident_of(facts_of("a:8b", 8), card=0, order=1, held_gib=10)
    other = resident_of(facts_of("b:20b", 20), card=1, order=2, held_gib=22)
    found = plan(Snapshot((gpu_of(0, 24, 8), gpu_of(1, 24, 2)), (one, other)))
    assert (found.cards, found.evict) == ((0,), (one.weights,))


def test_a_full_count_of_models_costs_the_cheapest_wherever_it_is():
    """Ollama evicts when as many models are loaded as may be; the plan chooses which, though there is memory enough."""
    cheap = resident_of(facts_of("a:2b", 2), card=0, order=1, held_gib=4)
    dear = resident_of(facts_of("b:6b", 6), card=1, order=2, held_gib=8)
    snapshot = Snapshot((gpu_of(0, 24, 5), gpu_of(1, 24, 16)), (cheap, dear))
    rules = MachineRules(ServerSettings(max_loaded_models=2))
    found = plan_at(NEW, BASE, snapshot, rules, may_pin=True)
    assert (found.cards, found.evict) == ((1,), (cheap.weights,))


def test_beyond_a_dozen_the_cheapest_go_first():
    """Sets of the cheapest dozen come first, then the others one by one, a kept one last."""
    residents = [resident_of(facts, held_gib=2, order=at, kept=at == 3) for at, facts in enumerate(SMALL[:15])]
    sizes = (2 * GIB,) * len(residents)
    sets = [chosen for _, chosen in cheapest_sets(residents, [Demand(sizes, 26 * GIB)])]
    assert [len(one) for one in sets] == [13, 14, 15]
    assert residents[3] not in sets[1]
    assert len(list(cheapest_sets(residents, [Demand(sizes, 24 * GIB)]))) == 4
    assert list(cheapest_sets(residents, [Demand(sizes, 31 * GIB)])) == []


def test_a_set_meets_every_demand():
    """Here one victim has the bytes and the other is what Ollama counts: only both together will do."""
    residents = [resident_of(SMALL[0]), resident_of(SMALL[1])]
    demands = [Demand((5, 0), 5), Demand((0, 5), 5), Demand((0, 0), 0)]
    assert [{one.weights for one in chosen} for _, chosen in cheapest_sets(residents, demands)] == [
        {SMALL[0].weights, SMALL[1].weights}
    ]


def test_sets_come_with_rising_cost():
    """Kept models cost more than busy ones, busy ones more than all idle ones, wanted ones more than unwanted."""
    residents = [
        resident_of(SMALL[0], kept=True),
        resident_of(SMALL[1], in_flight=2),
        resident_of(SMALL[2], wanted=1),
        resident_of(SMALL[5]),
        resident_of(SMALL[4]),
    ]
    sets = list(cheapest_sets(residents))
    assert [one for one, _ in sets] == sorted(one for one, _ in sets)
    assert len(sets) == 1 << len(residents) <= 1 << MOST_CHOICES
    assert sets[0] == (0, ())
    assert [[r.weights for r in one] for _, one in sets[1:3]] == [[SMALL[4].weights], [SMALL[5].weights]]
    assert sets[16][1] == (residents[0],)


def test_of_two_that_would_make_room_the_one_that_is_used_less_goes():
    """Though it is bigger: it is less likely to be loaded again."""
    often = resident_of(facts_of("often:8b", 8), held_gib=9, order=1, free_at_load_gib=12, uses=30.0)
    once = resident_of(facts_of("once:9b", 9), held_gib=10, card=1, order=2, free_at_load_gib=12, uses=0.5)
    world = Snapshot((gpu_of(0, 12, 3), gpu_of(1, 12, 2)), (often, once), catalog=catalog_of(NEW))
    assert plan(world, facts_of("new:5b", 5)).evict == (once.weights,)
    equal = tuple(replace(one, uses=0.5) for one in world.residents)
    assert plan(replace(world, residents=equal), facts_of("new:5b", 5)).evict == (often.weights,)


def test_a_split_over_cards_that_are_empty_only_without_the_idle_ones_evicts_those():
    """No card alone would do, and the smaller card only without its resident."""
    small = resident_of(facts_of("small:1b", 1), held_gib=2.12, order=0, free_at_load_gib=12)
    world = Snapshot((gpu_of(0, 12, 9.88), gpu_of(1, 24, 24)), (small,), catalog=catalog_of(NEW))
    found = plan(world, facts_of("new:30b", 30))
    assert (found.evict, found.cards) == ((small.weights,), (0, 1))


def test_where_only_so_many_models_may_be_loaded_and_none_may_go_there_is_no_plan():
    """Ollama would evict one for the newcomer, though there is room."""
    other = resident_of(facts_of("other:1b", 1), held_gib=2, free_at_load_gib=24)
    world = Snapshot((gpu_of(0, 24, 22),), (other,), catalog=catalog_of(NEW))
    one = MachineRules(ServerSettings(max_loaded_models=1))
    found = plan_at(NEW, BASE, world, one, may_pin=True, spared=frozenset({other.weights}))
    assert (type(found), found.reason) == (Shortage, "others are in use")
    assert plan_at(NEW, BASE, world, one, may_pin=True).evict == (other.weights,)
