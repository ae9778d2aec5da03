"""Which node a front picks, by what the nodes have told: pure, without connections."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.decision.chain import Chain, Variant
from router.core.decision.context import ContextRules
from router.core.decision.fleet.offer import Tier
from router.core.nodes.catalog import NodeCatalog, NodeModel, NodeNeed
from router.core.nodes.choice import MOST_HOLDERS, Choice
from router.core.nodes.index import MOST_ORDERS, Index
from router.core.nodes.rooms import BESIDE, EVICTS, Rooms
from router.core.nodes.state import LOADS_S, MOST_INTERNED, MOST_NEEDS, Interned, Models, NodeState
from router.core.nodes.view import NodeGpu, NodeLoading, NodeResident, NodeView
from router.core.nodes.wanted import wanted_of
from router.core.ollama.names import key_of
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest
from router.core.units import GIB

SIZES = {"big": 20, "middle": 9, "small": 3}
CHAIN = Chain("chat", tuple(Variant(f"{name}:latest") for name in SIZES))
RULES = ContextRules()


def model(kind, **more):
    size = SIZES[kind] * GIB
    about = {
        "name": f"{kind}:latest",
        "digest": f"digest-{kind}",
        "size_bytes": size,
        "weights": f"w-{kind}",
        "capabilities": ("completion",),
        "architecture": "llama",
        "context_length": 131072,
        "needs": (NodeNeed(8192, size + GIB), NodeNeed(131072, size + 8 * GIB)),
        "load_s": float(SIZES[kind]),
    }
    return NodeModel(**{**about, **more})


ALL = Models(NodeCatalog.of(tuple(map(model, SIZES))))


def resident(name, gib=None, **more):
    held = ((SIZES[name] + 1 if gib is None else gib) * GIB,)
    return NodeResident(**{"weights": f"w-{name}", "context": 32768, "is_full": True, "held_bytes": held, **more})


def state(name, *residents, gib=24, models=ALL, at_s=0.0, **more):
    """A node with one card; what its residents do not hold is free."""
    free = gib * GIB - sum(sum(one.held_bytes) for one in residents)
    about = {
        "name": name,
        "boot_id": "b",
        "seq": 1,
        "version": "1",
        "is_up": True,
        "draining": False,
        "memory": "probed",
        "gpus": (NodeGpu(f"GPU-{name}", gib * GIB, max(0, free)),),
        "residents": residents,
    }
    return NodeState.of(name, NodeView(**{**about, **more}), models, at_s)


def choice_of(*states, own=None):
    index = Index()
    for one in states:
        index.put(one)
    counts = own or {}
    return Choice(index, lambda name, weights: counts.get((name, weights), 0)), index


def pick(choice, index, chain=CHAIN, request=None, now_s=0.0, **more):
    asked = request or InferenceRequest(chain.name)
    return choice.pick(wanted_of(asked, chain, index.catalog, RULES), lambda: 0, now_s, **more)


def one_of(name):
    return Chain(name, (Variant(f"{name}:latest"),))


def test_the_order_of_the_chain_comes_before_what_is_loaded():
    """The biggest variant that can run somewhere, even if others must become idle first."""
    found = pick(*choice_of(state("a", resident("small", gib=1)), state("b", gib=12)))
    assert (found.node, found.position, found.tier) == ("a", 0, Tier.BESIDE)
    busy = state("a", resident("middle", in_flight=1))
    found = pick(*choice_of(busy, state("b", resident("small"), gib=12)))
    assert (found.node, found.position, found.tier) == ("a", 0, Tier.WAITS)


def test_a_holder_needs_the_context_of_the_request():
    """One with less is loaded anew; what is not known is not held against it."""
    short, unknown = resident("small", context=4096), resident("small", context=0)
    assert pick(*choice_of(state("a", short), state("b", resident("small"))), chain=one_of("small")).node == "b"
    assert pick(*choice_of(state("a", short)), chain=one_of("small")).tier is Tier.BESIDE
    assert pick(*choice_of(state("a", unknown)), chain=one_of("small")).tier is Tier.HOLDS


def test_a_model_that_is_not_wholly_on_the_gpu_is_no_holder():
    """A request there would be slow."""
    found = pick(*choice_of(state("a", resident("small", is_full=False)), state("b")), chain=one_of("small"))
    assert found.tier is Tier.BESIDE


def test_what_is_being_loaded_comes_before_a_copy():
    """Until it would take longer than that."""

    def asked(eta_s):
        loading = (NodeLoading("w-small", 32768, eta_s),)
        return pick(*choice_of(state("a", loading=loading), state("b")), chain=one_of("small")).node

    assert (asked(2.0), asked(60.0)) == ("a", "b")


def test_a_cold_model_goes_to_the_smallest_cards_that_can_take_it():
    """Whatever the order of the names."""
    choice, index = choice_of(*(state(name, gib=gib) for name, gib in zip("abcd", (48, 12, 24, 12), strict=True)))
    assert pick(choice, index, one_of("middle")).node in ("b", "d")
    assert pick(choice, index, one_of("big")).node == "c"


def test_nodes_with_too_much_to_do_get_no_cold_model():
    """The bound is by the mean of all nodes."""
    free = [state(name) for name in "abcd"]
    choice, index = choice_of(*free)
    first = pick(choice, index, one_of("small")).node
    busy = state(first, resident("big", in_flight=9))
    choice, index = choice_of(*(busy if one.name == first else one for one in free))
    assert pick(choice, index, one_of("small")).node != first


def test_a_thousand_rounds_of_one_cold_model_are_one_load_each_n1():
    """Three fronts with views of different ages agree, with no word between them."""
    for number in range(1000):
        nodes = [state(f"gpu-{at}", at_s=0.0) for at in range(2 + number % 7)]
        chain = one_of(("small", "middle", "big")[number % 3])
        found = {
            pick(*choice_of(*nodes[front:], *nodes[:front]), chain=chain, now_s=front * 0.5).node for front in range(3)
        }
        assert len(found) == 1


def test_old_views_count_for_what_is_loaded_only():
    """After 3 s nothing is loaded there; what it holds is used."""
    now_s = LOADS_S + 0.1
    choice, index = choice_of(state("a", resident("small")))
    assert pick(choice, index, one_of("small"), now_s=now_s).node == "a"
    assert pick(choice, index, one_of("big"), now_s=now_s) is None
    index.put(state("b", at_s=now_s))
    assert pick(choice, index, one_of("big"), now_s=now_s).node == "b"


@pytest.mark.parametrize("more", [{"draining": True}, {"is_up": False}])
def test_a_node_that_takes_nothing_is_not_picked(more):
    """Neither for what it holds nor for what it could load."""
    assert pick(*choice_of(state("a", resident("small"), **more))) is None


@pytest.mark.parametrize(("barred", "found"), [(("w-big",), 1), (("",), None)])
def test_what_a_node_does_not_load_is_not_asked_of_it(barred, found):
    """One model, or all."""
    got = pick(*choice_of(state("a", barred=barred)))
    assert (None if got is None else got.position) == found


def test_without_readings_a_load_is_tried():
    """The node verifies it."""
    assert pick(*choice_of(state("a", memory="verify"))).tier is Tier.TRIES
    assert pick(*choice_of(state("a", memory="verify"), state("b"))).node == "b"
    assert pick(*choice_of(state("a", memory="no_gpu", gpus=()))) is None


def test_a_model_is_split_over_all_cards_of_a_node():
    """If it fits on none alone."""
    split = Models(NodeCatalog.of((model("big", needs=(NodeNeed(8192, 21 * GIB, 22 * GIB),)),)))
    gpus = tuple(NodeGpu(f"GPU-{at}", 12 * GIB, 12 * GIB) for at in range(2))
    choice, index = choice_of(state("a", models=split, gpus=gpus))
    assert pick(choice, index, one_of("big")).tier is Tier.BESIDE
    assert pick(*choice_of(state("b", models=split, gpus=gpus[:1])), chain=one_of("big")) is None


@pytest.mark.parametrize("barred", ["w-small", ""])
def test_a_load_that_has_failed_on_one_node_is_made_on_another(barred):
    """Whichever comes first in the order, and however many have room for it."""
    for count in (2, 12):
        names = [f"n{at}" for at in range(count)]
        first = pick(*choice_of(*map(state, names)), chain=one_of("small")).node
        states = [state(name, barred=(barred,) if name == first else ()) for name in names]
        found = pick(*choice_of(*states), chain=one_of("small"))
        assert (found.node in names, found.node == first, found.position) == (True, False, 0)


@pytest.mark.parametrize("count", [3, 6, 7, 40])
def test_of_few_nodes_with_room_and_of_many_the_first_in_the_order_is_found(count):
    """Others, which have none, change nothing."""
    names = [f"n{at}" for at in range(count)]
    full = [state(f"full{at}", resident("big", gib=23, in_flight=1)) for at in range(9)]
    choice, index = choice_of(*map(state, names), *full)
    expected = next(name for name in index.order("middle:latest") if name in names)
    assert pick(choice, index, one_of("middle")).node == expected


def test_a_node_that_holds_a_smaller_variant_may_answer_by_it():
    """The rules for returns to a bigger one are applied there: it is told the chain down to what it holds."""
    found = pick(*choice_of(state("a", resident("small", gib=1))))
    assert (found.position, found.last) == (0, 2)
    found = pick(*choice_of(state("a")))
    assert (found.position, found.last) == (0, 0)
    unknown = state("a", resident("small", context=0))
    found = pick(*choice_of(unknown))
    assert (found.position, found.last) == (0, 2)


def test_nodes_that_have_failed_a_request_do_not_get_it_again():
    """Nor those that are left out after failures, unless nobody else can serve it."""
    choice, index = choice_of(state("a", resident("small")), state("b", resident("small")))
    chain = one_of("small")
    assert pick(choice, index, chain, failed=("a",)).node == "b"
    assert pick(choice, index, chain, failed=("a", "b")) is None
    assert pick(choice, index, chain, left_out=lambda name, _model: float(name == "a")).node == "b"
    assert pick(choice, index, chain, left_out=lambda _name, model: float(bool(model))).node in ("a", "b")


def test_what_is_left_out_gives_way_to_a_smaller_variant_elsewhere():
    """As with the backends of one router."""
    choice, index = choice_of(state("a"), state("b", gib=12))
    assert pick(choice, index, left_out=lambda name, _: float(name == "a")).node == "b"


def test_a_placement_that_is_asked_for_goes_to_any_node_that_has_the_model():
    """Ollama is left to do it."""
    request = InferenceRequest("big", options=LoadOptions(num_gpu=0))
    found = pick(*choice_of(state("a", gib=2)), chain=one_of("big"), request=request)
    assert (found.node, found.tier) == ("a", Tier.BESIDE)


def test_a_tag_that_only_another_node_has_does_not_lead_astray():
    """Weights that are loaded under a name that is not known there."""
    alias = Models(NodeCatalog.of((model("small", name="alias:latest"),)))
    choice, index = choice_of(state("a", resident("small"), models=alias), state("b"))
    assert pick(choice, index, one_of("small")).node == "b"


def test_the_last_resort_is_the_node_that_can_do_most():
    """One that has the model, with the biggest cards."""
    none = Models(NodeCatalog.of(()))
    choice, index = choice_of(state("a", gib=4), state("b", gib=8), state("c", gib=99, models=none))
    wanted = wanted_of(InferenceRequest("big"), one_of("big"), index.catalog, RULES)
    assert choice.last_resort(wanted, 0.0) == "b"
    assert choice.last_resort(wanted, 0.0, ("b",)) == "a"
    assert choice.last_resort(wanted, 0.0, ("a", "b", "c")) is None


def test_the_index_follows_what_nodes_say():
    """What has left is found no more, and models of nodes are known while one has them."""
    choice, index = choice_of(state("a", resident("small")))
    before = index.catalog
    index.put(state("a", resident("small", in_flight=2)))
    assert index.catalog is before
    assert index.holders("w-small", 8192).places == ("a",)
    index.put(state("a", loading=(NodeLoading("w-big", 8192, 1.0),)))
    assert index.holders("w-small", 8192) is None
    assert index.loading("w-big") == ["a"]
    index.put(state("b", models=Models(NodeCatalog.of((model("big"),)), Interned())))
    index.remove("a")
    assert index.loading("w-big") == []
    assert set(index.catalog) == {next(iter(index.catalog))}
    index.remove("b")
    index.remove("b")
    assert (len(index), index.catalog, index.mean_busy) == (0, {}, 0)
    assert pick(choice, index) is None


def test_equal_models_of_many_nodes_are_one_object():
    """So that chains, which are remembered by it, are not found anew with each node; what a load costs may differ."""
    interned = Interned()
    first = Models(NodeCatalog.of((model("small", load_s=1.0),)), interned)
    other = Models(NodeCatalog.of((model("small", load_s=9.0),)), interned)
    (one,), (two,) = first.facts.values(), other.facts.values()
    assert one is two


NODES = st.lists(
    st.tuples(
        st.sampled_from((8, 12, 24, 48)),
        st.lists(
            st.tuples(st.sampled_from(tuple(SIZES)), st.integers(0, 2), st.booleans()),
            max_size=2,
            unique_by=lambda x: x[0],
        ),
        st.sampled_from((0.0, 0.0, 0.0, -5.0)),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(NODES, st.integers(0, 3))
def test_the_pick_is_as_good_as_the_first_of_the_whole_order(nodes, conversation):
    """The short way and the ranking of all nodes find the same variant, as soon."""
    states = []
    for at, (gib, held, at_s, is_draining) in enumerate(nodes):
        rows = [resident(name, in_flight=busy, is_full=whole) for name, busy, whole in held]
        states.append(state(f"n{at}", *rows, gib=gib, at_s=at_s, draining=is_draining))
    choice, index = choice_of(*states)
    wanted = wanted_of(InferenceRequest("chat"), CHAIN, index.catalog, RULES)
    best = choice.ranked(wanted, 0.0)[0]
    found = choice.pick(wanted, lambda: conversation, 0.0)
    assert (found is None) == (not best.is_usable)
    if found is not None:
        assert (found.position, found.tier) == (best.offer.position, best.tier)


def test_a_view_costs_few_bytes():
    """Two models on two cards: well below 2 KB."""
    view = state("gpu-a", resident("small"), resident("middle")).view
    assert len(view.to_json()) < 2048
    assert NodeView.from_json(msgspec.json.encode(view)) == view


IDLE = st.lists(
    st.tuples(
        st.lists(st.sampled_from((8, 12, 24, 48)), min_size=1, max_size=3),
        st.lists(st.sampled_from(tuple(SIZES)), max_size=1),
        st.sampled_from(("probed", "probed", "verify")),
    ),
    min_size=1,
    max_size=7,
)
SPLIT = Models(
    NodeCatalog.of(
        tuple(model(name, needs=(NodeNeed(8192, (size + 1) * GIB, (size + 2) * GIB),)) for name, size in SIZES.items())
    )
)


@settings(max_examples=200, deadline=None)
@given(IDLE, st.sampled_from(tuple(SIZES)))
def test_the_node_for_a_load_is_found_by_size_as_by_comparing_all(nodes, wanted_model):
    """Whatever cards the nodes have, alike or not, one or several."""
    states = []
    for at, (gibs, held, memory) in enumerate(nodes):
        rows = [resident(name, held_bytes=((SIZES[name] + 1) * GIB, *[0] * (len(gibs) - 1))) for name in held]
        free = [gib * GIB - sum(one.held_bytes[number] for one in rows) for number, gib in enumerate(gibs)]
        gpus = tuple(NodeGpu(f"G{number}", gib * GIB, max(0, free[number])) for number, gib in enumerate(gibs))
        states.append(state(f"n{at}", *rows, gpus=gpus, models=SPLIT, memory=memory))
    choice, index = choice_of(*states)
    wanted = wanted_of(InferenceRequest(wanted_model), one_of(wanted_model), index.catalog, RULES)
    best, found = choice.ranked(wanted, 0.0)[0], choice.pick(wanted, lambda: 0, 0.0)
    assert (found is None) == (not best.is_usable)
    if found is not None:
        assert (found.node, found.tier) == (best.place, best.tier)


def test_rooms_follow_the_nodes():
    """The most of a size is that of the nodes that are there."""
    rooms = Rooms()
    rooms.put(state("a", resident("small")))
    rooms.put(state("b"))
    assert list(rooms.with_room(BESIDE, 22 * GIB)) == [24]
    rooms.put(state("b", resident("big")))
    assert list(rooms.with_room(BESIDE, 22 * GIB)) == []
    assert list(rooms.with_room(EVICTS, 22 * GIB)) == [24]
    rooms.put(state("b", draining=True))
    rooms.remove("a")
    rooms.remove("a")
    assert (list(rooms.with_room(BESIDE, 0)), rooms.odd) == ([], set())


def test_of_many_holders_those_with_least_to_do_are_compared():
    """The last of them by name is the only one where nobody waits, and the front's own requests count as well."""
    names = [f"n{at:02}" for at in range(MOST_HOLDERS + 10)]
    states = [state(name, resident("small", in_flight=4, waiting=3, wait_s=9.0)) for name in names[:-2]]
    states += [state(name, resident("small", in_flight=1), gib=48) for name in names[-2:]]  # the last for copies
    choice, index = choice_of(*states, own={(names[-1], "w-small"): 9})
    assert pick(choice, index, one_of("small"), failed=(names[0],)).node == names[-2]


def test_one_of_two_that_load_a_model_leaves_the_other():
    _, index = choice_of(*(state(name, loading=(NodeLoading("w-big", 8192, 1.0),)) for name in "ab"))
    index.put(state("a"))
    assert index.loading("w-big") == ["b"]


def test_the_orders_of_any_number_of_models_take_bounded_memory():
    """One that was forgotten is the same when it is asked for again, on all nodes and on those of one size."""
    _, index = choice_of(*(state(name, gib=gib) for name, gib in zip("abcdef", (24, 24, 24, 24, 8, 8), strict=True)))
    first, first_of_size = list(index.order("m0")), list(index.order_of_size("m0", 24))
    assert sorted(first_of_size) == ["a", "b", "c", "d"]
    for number in range(2 * MOST_ORDERS):
        index.order_of_size(f"m{number}", 24)
    assert max(len(index._orders), len(index._orders_of_size)) <= MOST_ORDERS
    assert (index.order("m0"), index.order_of_size("m0", 24)) == (first, first_of_size)


def test_a_node_without_a_gpu_comes_last_of_those_that_cannot_serve():
    """It is the last resort only where no other node is there."""
    choice, index = choice_of(state("a", memory="no_gpu", gpus=()), state("b", gib=4))
    wanted = wanted_of(InferenceRequest("big"), one_of("big"), index.catalog, RULES)
    ranked = choice.ranked(wanted, 0.0)
    assert [(one.place, one.is_usable, one.offer.is_without_gpu) for one in ranked] == [
        ("b", False, False),
        ("a", False, True),
    ]
    assert choice.last_resort(wanted, 0.0) == "b"
    assert choice.last_resort(wanted, 0.0, ("b",)) == "a"


def test_facts_of_any_number_of_models_take_bounded_memory():
    """Those that come again say the same, if not as the same object."""
    interned = Interned()
    first = interned.facts(model("small"))
    assert interned.facts(model("small")) is first
    for number in range(MOST_INTERNED):
        interned.facts(model("small", block_count=number + 1))
    assert len(interned._known) <= MOST_INTERNED
    again = interned.facts(model("small"))
    assert (again.name, again.weights, again.info) == (first.name, first.weights, first.info)
    assert again is not first


def test_needs_for_any_number_of_contexts_take_bounded_memory():
    """Each is what the model needs with that context."""
    models = Models(NodeCatalog.of((model("small"),)))
    for num_ctx in range(8192, 8192 + MOST_NEEDS + 8):
        assert models.need(key_of("small:latest"), num_ctx) == model("small").need(num_ctx)
    assert len(models._needs) <= MOST_NEEDS
    assert models.need(key_of("other:latest"), 8192) is None


def test_a_resident_holds_nothing_on_cards_that_it_does_not_tell_of():
    """As of a card that was not there when it was loaded."""
    gpus = tuple(NodeGpu(f"GPU-{at}", 24 * GIB, 20 * GIB) for at in range(2))
    first, second = state("a", resident("small", gib=4, in_flight=1), gpus=gpus).cards
    assert (first.busy_bytes, first.idle_bytes) == (4 * GIB, 0)
    assert (second.busy_bytes, second.idle_bytes, second.free_bytes) == (0, 0, 20 * GIB)
