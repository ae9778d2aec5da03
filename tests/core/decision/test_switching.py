"""Plans of a switch: what is evicted, what is loaded where, and that Ollama has no choice left."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.core.decision.context import ContextNeed
from router.core.decision.foreseen import SPLIT_SLACK, booked
from router.core.decision.load_context import contexts, plan_switch
from router.core.decision.need import MachineRules
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import Plan, Shortage
from router.core.learning.observation import Observation
from router.core.learning.residuals import Learned
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.ollama.scheduler import foresee_load
from router.core.units import GIB
from tests.core.decision.test_policy_properties import FACTS, worlds
from tests.core.facts import catalog_of, facts_of, gpu_of, resident_of

BASE = LoadOptions(num_batch=512)
NEED = ContextNeed(8192, 8192)
RULES = MachineRules()
NEW = facts_of("new:9b", 9)


def plan(facts, snapshot, need=NEED, rules=RULES):
    return plan_switch(facts, BASE, need, snapshot, rules)


@given(worlds(splits=True), st.sampled_from(FACTS), st.data())
def test_replayed_on_ollamas_own_rules_a_plan_evicts_nothing_else(snapshot, facts, data):
    """Whatever is booked for split residents within the bounds, all others stay and each outcome is on its cards."""
    found = plan(facts, snapshot)
    if isinstance(found, Shortage):
        return
    going = [resident for resident in snapshot.residents if resident.weights in found.evict]
    stay = [resident for resident in snapshot.residents if resident not in going]
    gpus = tuple(
        replace(
            gpu,
            free_bytes=min(gpu.total_bytes, gpu.free_bytes + sum(r.held_bytes.get(gpu.index, 0) for r in going)),
        )
        for gpu in snapshot.gpus
    )
    most, least = ([booked(one, gpus, is_least=is_least) for one in stay] for is_least in (False, True))
    between = [
        replace(one, buffers_bytes=tuple(data.draw(st.integers(*sorted(ends))) for ends in bounds))
        for one, bounds in (
            (one, zip(other.buffers_bytes, one.buffers_bytes, strict=True))
            for one, other in zip(most, least, strict=True)
        )
    ]
    foresight = foresee_load(facts, found.options, gpus, between, RULES.settings)
    assert foresight.evicts == ()
    assert {outcome.cards for outcome in foresight.outcomes} == {found.cards}


@given(worlds(), st.sampled_from(FACTS))
def test_plans_unload_the_youngest_first_and_only_residents(snapshot, facts):
    """Each eviction is a resident, named once, ordered from the youngest load."""
    found = plan(facts, snapshot)
    if isinstance(found, Plan):
        order = {resident.weights: resident.order for resident in snapshot.residents}
        ranks = [order[weights] for weights in found.evict]
        assert ranks == sorted(ranks, reverse=True)
        assert len(set(found.evict)) == len(found.evict)


@given(worlds(), st.sampled_from(FACTS))
def test_on_several_cards_a_model_that_fits_one_is_pinned(snapshot, facts):
    """main_gpu names that card; a split model has none."""
    found = plan(facts, snapshot)
    if isinstance(found, Plan) and len(snapshot.gpus) > 1:
        assert found.options.main_gpu == (found.cards[0] if len(found.cards) == 1 else None)


def test_nothing_is_evicted_if_the_model_fits_beside_the_residents():
    """A small model is loaded beside a small resident."""
    other = facts_of("other:5b", 5)
    snapshot = Snapshot((gpu_of(free_gib=17),), (resident_of(other, held_gib=7),), catalog=catalog_of(other, NEW))
    assert plan(NEW, snapshot).evict == ()


def test_kept_model_is_evicted_last():
    """Of two residents, either of which would do, the one that is not kept is evicted."""
    kept, other = facts_of("kept:6b", 6), facts_of("other:8b", 8)
    residents = (
        resident_of(kept, held_gib=8, order=1, kept=True),
        resident_of(other, held_gib=10, order=2, free_at_load_gib=16),
    )
    snapshot = Snapshot((gpu_of(free_gib=6),), residents, catalog=catalog_of(kept, other, NEW))
    assert plan(NEW, snapshot).evict == (other.weights,)


def test_resident_that_ollama_would_evict_is_unloaded_by_the_plan():
    """It was loaded beside a model that is gone, so Ollama believes less memory to be free than is."""
    stale = facts_of("stale:5b", 5)
    resident = resident_of(stale, held_gib=7, free_at_load_gib=10)
    snapshot = Snapshot((gpu_of(free_gib=17),), (resident,), catalog=catalog_of(stale, NEW))
    assert plan(NEW, snapshot).evict == (stale.weights,)


def test_older_runner_of_the_same_weights_is_always_evicted():
    """A reload frees its own memory first."""
    mine = resident_of(NEW, held_gib=11, num_ctx=4096)
    snapshot = Snapshot((gpu_of(free_gib=13),), (mine,), catalog=catalog_of(NEW))
    assert plan(NEW, snapshot).evict == (NEW.weights,)


def test_many_residents_are_tried_youngest_first():
    """Beyond six residents only prefixes of the youngest are tried."""
    many = [facts_of(f"tiny{n}:1b", 1) for n in range(8)]
    residents = tuple(resident_of(f, held_gib=2.5, order=n) for n, f in enumerate(many))
    snapshot = Snapshot((gpu_of(free_gib=4),), residents, catalog=catalog_of(*many, NEW))
    found = plan(NEW, snapshot, rules=MachineRules(ServerSettings(max_loaded_models=20)))
    assert found.evict[0] == many[-1].weights
    assert list(found.evict) == [f.weights for f in reversed(many)][: len(found.evict)]


def test_shortage_names_the_nearest_miss():
    """The attempt that comes closest is reported with its bytes."""
    huge = facts_of("huge:70b", 40)
    found = plan(huge, Snapshot((gpu_of(),), catalog=catalog_of(huge)))
    assert isinstance(found, Shortage)
    assert found.need_bytes > found.have_bytes == 24 * GIB
    assert found.reason == "too big"


def test_measured_spill_forbids_the_same_free_level():
    """The ban counts at this free level or below; with more free memory there is a plan."""
    spill = Observation(
        NEW.weights, 8192, 512, 1, "f16", ("card",), "", 0, 19 * GIB, True, 20 * GIB, 1000.0, size_bytes=1
    )
    rules = MachineRules(ServerSettings(version=""), learned=Learned.of([spill]), now_s=1010.0)
    tight = Snapshot((gpu_of(total_gib=24, free_gib=20),), catalog=catalog_of(NEW))
    found = plan(NEW, tight, rules=rules)
    assert found.reason == "it spilled before at this free level"
    roomy = Snapshot((gpu_of(free_gib=24),), catalog=catalog_of(NEW))
    assert isinstance(plan(NEW, roomy, rules=rules), Plan)


def test_contexts_go_down_to_the_least_and_end_there():
    """The largest comes first, then multiples of the step."""
    found = list(contexts(ContextNeed(8192, 32768), 2048))
    assert (found[0], found[-1]) == (32768, 8192)
    assert found == sorted(found, reverse=True)
    assert all(num_ctx % 2048 == 0 for num_ctx in found)


def test_smaller_context_is_taken_only_if_the_larger_has_no_plan():
    """The largest context that fits is chosen among those that serve the request."""
    snapshot = Snapshot((gpu_of(total_gib=12),), catalog=catalog_of(NEW))
    found = plan(NEW, snapshot, ContextNeed(8192, 131072))
    assert 8192 <= found.options.num_ctx < 131072


def test_split_resident_books_its_share_on_each_card():
    """At most what it holds there without the driver context, at least that less all that Ollama lost."""
    split = resident_of(NEW, options=None, held_bytes={0: 6 * GIB, 1: 4 * GIB}, free_at_load_bytes={})
    gpus = (gpu_of(0), gpu_of(1))
    found = booked(split, gpus)
    assert found.cards == (0, 1)
    parts = [6 * GIB - gpus[0].context_bytes, 4 * GIB - gpus[1].context_bytes]
    lost = sum(parts) - split.size_vram_bytes
    assert lost > 0
    assert found.buffers_bytes == tuple(int(part * SPLIT_SLACK) for part in parts)
    assert found.free_at_load_bytes == (None, None)
    least = tuple(int((part - lost) / SPLIT_SLACK) for part in parts)
    assert booked(split, gpus, is_least=True).buffers_bytes == least


def test_split_that_ollama_would_not_make_is_refused():
    """Ollama predicts too little cache (e08): it would put everything on one card, where it spills."""
    wide = facts_of("wide:13b", 13, **{"llama.attention.key_length": 512, "llama.attention.value_length": 512})
    cards = (gpu_of(0, 20), gpu_of(1, 20))
    found = plan(wide, Snapshot(cards, catalog=catalog_of(wide)), ContextNeed(32768, 32768))
    assert isinstance(found, Shortage)
    assert found.reason == "Ollama would choose other cards"


def test_pinned_resident_is_booked_on_its_card_by_its_own_number():
    """A runner alone on card 1 calls it card 0, which is what Ollama then reads (docs/ollama.md, "Booked memory")."""
    pinned = resident_of(NEW, card=1, options=LoadOptions(num_ctx=8192, num_batch=512, main_gpu=1))
    found = booked(pinned, (gpu_of(0), gpu_of(1)))
    assert (found.cards, len(found.buffers_bytes)) == ((1,), 1)
    assert found.booked_bytes(1) == 0


def test_a_number_that_may_be_another_cards_is_not_named_if_ollama_finds_the_card_itself():
    """While the order is not known: too big for one of the cards that may have the number; else pinned as ever."""
    big, small = facts_of("big:14b", 14), facts_of("small:4b", 4)
    cards = (gpu_of(0, 24), gpu_of(1, 12))
    unsure = Snapshot(cards, catalog=catalog_of(big, small), unproven=frozenset({0, 1}))
    found = plan(big, unsure)
    assert (found.cards, found.options.main_gpu) == ((0,), None)
    assert plan(big, replace(unsure, unproven=frozenset())).options.main_gpu == 0
    assert plan(small, unsure).options.main_gpu == 1


def test_a_load_that_may_go_to_a_card_which_is_too_small_is_split_instead():
    cards = (gpu_of(0, 24), gpu_of(1, 12))
    wide = facts_of("wide:19b", 19)  # Ollama would split this one unless the card is named
    unsure = Snapshot(cards, catalog=catalog_of(wide), unproven=frozenset({0, 1}))
    assert plan(wide, replace(unsure, unproven=frozenset())).options.main_gpu == 0
    found = plan(wide, unsure)
    assert (found.cards, found.options.main_gpu) == ((0, 1), None)


def test_a_load_may_go_to_a_card_which_is_too_small_rather_than_be_refused():
    """Too little is free on the small one to split the model."""
    cards = (gpu_of(0, 24), replace(gpu_of(1, 12), free_bytes=100 << 20))
    wide = facts_of("wide:21b", 21)
    unsure = Snapshot(cards, catalog=catalog_of(wide), unproven=frozenset({0, 1}))
    found = plan(wide, unsure)
    assert (found.cards, found.options.main_gpu) == ((0,), 0)


def test_while_the_order_is_open_only_a_named_card_is_loaded_beside_others():
    """What Ollama believes to be free on each card depends on who is there by its own numbers."""
    big, small = facts_of("big:14b", 14), facts_of("small:4b", 4)
    resident = resident_of(small, held_gib=5, card=1, order=0, free_at_load_gib=12)
    known = Snapshot((gpu_of(0, 24), gpu_of(1, 12, 7)), (resident,), catalog=catalog_of(big))
    assert plan(big, known).evict == ()
    found = plan(big, replace(known, unproven=frozenset({0, 1})))
    assert (found.evict, found.options.main_gpu) == ((small.weights,), None)


def test_what_one_card_holds_once_all_are_gone_is_not_split():
    """Beside any resident Ollama would evict, so all must go in either case; then one card leaves the other free."""
    large = facts_of("large:32b", 19.5)
    first, second = facts_of("first:14b", 11), facts_of("second:12b", 10)
    residents = (
        resident_of(first, held_gib=12, card=0, order=0, free_at_load_gib=24),
        resident_of(second, held_gib=11.5, card=1, order=1, free_at_load_gib=12),
    )
    snapshot = Snapshot((gpu_of(0, 24, 12), gpu_of(1, 12, 0.5)), residents, catalog=catalog_of(large))
    found = plan(large, snapshot)
    assert isinstance(found, Plan)
    assert set(found.evict) == {first.weights, second.weights}
    assert (found.cards, found.options.main_gpu) == ((0,), 0)


def test_a_split_evicts_as_many_as_ollama_must_lose_although_fewer_free_enough():
    """Ollama keeps one model at a time here: the bigger of the two would make room alone."""
    large = facts_of("large:32b", 30)
    big, small = facts_of("big:14b", 14), facts_of("small:1b", 1)
    residents = (
        resident_of(big, held_gib=15, card=0, order=0),
        resident_of(small, held_gib=2, card=1, order=1),
    )
    snapshot = Snapshot((gpu_of(0, 24, 9), gpu_of(1, 24, 22)), residents, catalog=catalog_of(large))
    one, two = (plan(large, snapshot, rules=MachineRules(ServerSettings(max_loaded_models=most))) for most in (1, 2))
    assert (set(one.evict), one.cards) == ({big.weights, small.weights}, (0, 1))
    assert two.evict == (big.weights,)
