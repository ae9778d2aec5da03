"""The decision, case by case."""

from dataclasses import replace

import pytest

from router.core.decision.chain import Chain, Variant
from router.core.decision.costs import LoadCosts
from router.core.decision.need import MachineRules
from router.core.decision.policy import choose
from router.core.decision.snapshot import Snapshot
from router.core.decision.upgrades import HeldBy, UpgradeRule
from router.core.decision.verdict import Outcome, Rules, VerdictKind
from router.core.learning.observation import Observation
from router.core.learning.residuals import Learned
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest
from tests.core.facts import catalog_of, chain_of, facts_of, gpu_of, resident_of

BIG, MIDDLE, SMALL = facts_of("big:70b", 40), facts_of("middle:30b", 18), facts_of("small:3b", 2)
CHAIN = chain_of("big:70b", "middle:30b", "small:3b")
CATALOG = catalog_of(BIG, MIDDLE, SMALL)
RULES = Rules()


def ask(**more):
    return InferenceRequest(model="big:70b", needs=frozenset({"completion"}), **more)


def snapshot(*residents, free_gib=24.0, total_gib=24.0, **more):
    return Snapshot((gpu_of(free_gib=free_gib, total_gib=total_gib),), residents, catalog=CATALOG, **more)


DOWN = UpgradeRule(is_moved_down=True, patience=1.0)
"""A chain that is served by a smaller variant."""

LATELY = {0: ((1.5, 10 << 30), (0.0, 24 << 30))}
"""Others took memory of the card until one and a half seconds ago."""


def kinds(decision):
    return [verdict.kind for verdict in decision.verdicts]


def test_first_variant_that_fits_is_chosen_and_the_bigger_is_explained_with_its_bytes():
    """On an empty 24 GB card the 40 GB model is skipped and the 18 GB one is chosen."""
    decision = choose(ask(), CHAIN, snapshot(), RULES)
    assert decision.outcome is Outcome.FALLBACK
    assert decision.chosen.variant.model == "middle:30b"
    assert kinds(decision) == [VerdictKind.TOO_BIG, VerdictKind.FITS]
    assert decision.verdicts[0].need_bytes > decision.verdicts[0].have_bytes > 0
    assert decision.chosen.plan.options.num_batch == 512


def test_asked_model_is_exact_on_a_card_that_holds_it():
    """On 80 GB the asked model itself serves."""
    decision = choose(ask(), CHAIN, snapshot(free_gib=80, total_gib=80), RULES)
    assert decision.outcome is Outcome.EXACT
    assert decision.reason == "fits"


def test_resident_variant_needs_no_memory():
    """A resident with enough context serves although nothing more fits."""
    decision = choose(ask(), CHAIN, snapshot(resident_of(MIDDLE, held_gib=21), free_gib=2.5), RULES)
    assert decision.chosen.kind is VerdictKind.RESIDENT
    assert decision.chosen.plan is None
    assert decision.reason.startswith("fallback: big:70b")


def test_resident_with_too_small_a_context_is_reloaded():
    """A request for more than the loaded context evicts the older runner of the same weights."""
    loaded = resident_of(SMALL, held_gib=4, num_ctx=8192)
    chain = chain_of("small:3b")
    request = InferenceRequest(model="small:3b", num_ctx=20000)
    decision = choose(request, chain, snapshot(loaded, free_gib=20), RULES)
    assert decision.chosen.kind is VerdictKind.FITS
    assert decision.chosen.plan.evict == (SMALL.weights,)
    assert decision.chosen.plan.options.num_ctx == 32768


def test_larger_loaded_context_is_kept():
    """A request for less context is served without a reload."""
    loaded = resident_of(SMALL, num_ctx=32768)
    decision = choose(InferenceRequest("small:3b", num_ctx=4096), chain_of("small:3b"), snapshot(loaded), RULES)
    assert decision.chosen.kind is VerdictKind.RESIDENT


def test_spilled_resident_never_serves():
    """A resident that is partly on the CPU is replaced, not used."""
    loaded = resident_of(MIDDLE, held_gib=12, size_vram_bytes=MIDDLE.size_bytes // 2)
    decision = choose(ask(), CHAIN, snapshot(loaded, free_gib=12), RULES)
    assert decision.chosen.kind is VerdictKind.FITS
    assert MIDDLE.weights in decision.chosen.plan.evict


def test_busy_resident_is_waited_for_and_not_interrupted():
    """A variant that fits only after a busy model was unloaded is chosen as WAITS, with that model's weights."""
    other = facts_of("other:30b", 18)
    loaded = resident_of(other, held_gib=20, in_flight=1)
    decision = choose(ask(), CHAIN, replace(snapshot(loaded, free_gib=3), catalog=catalog_of(BIG, MIDDLE)), RULES)
    assert decision.chosen.kind is VerdictKind.WAITS
    assert decision.chosen.plan.waits_for == (other.weights,)


@pytest.mark.parametrize(
    ("rule", "held_by"),
    [
        ({"is_never": True}, HeldBy.NEVER),
        ({"prefer": "speed"}, HeldBy.PREFERS),
        ({"max_load_wait_s": 10.0}, HeldBy.LOAD_WAIT),
        ({"is_spent": True}, HeldBy.BUDGET),
        ({}, HeldBy.LATELY),
        ({"after_s": 2.0}, HeldBy.LATELY),
    ],
)
def test_a_bigger_variant_that_is_held_back_says_why_and_the_resident_one_serves(rule, held_by):
    """The reason is with the verdict, and in the words for the client."""
    loaded = resident_of(SMALL, held_gib=8)
    fresh = snapshot(loaded, free_gib=16, left_bytes=LATELY)
    decision = choose(ask(), CHAIN, fresh, RULES, replace(DOWN, **rule))
    assert decision.chosen.variant.model == "small:3b"
    assert (decision.better.variant.model, decision.better.held_by) == ("middle:30b", held_by)
    assert held_by.value in decision.reason


@pytest.mark.parametrize("rule", [{"prefer": "quality", "is_spent": True}, {"after_s": 1.0}])
def test_quality_and_memory_that_was_free_for_long_enough_hold_nothing_back(rule):
    """Whatever the budget, and however lately the memory came back."""
    fresh = snapshot(resident_of(SMALL, held_gib=8), free_gib=16, left_bytes=LATELY)
    decision = choose(ask(), CHAIN, fresh, RULES, replace(DOWN, **rule))
    assert (decision.chosen.variant.model, decision.better) == ("middle:30b", None)


@pytest.mark.parametrize(
    ("kept", "rule", "served"),
    [
        (None, {"is_never": True}, "small:3b"),
        (2, {"is_never": True}, "small:3b"),
        (1, {"is_never": True}, "middle:30b"),
        (0, {"is_spent": True}, "middle:30b"),
        (1, {"prefer": "speed"}, "small:3b"),
    ],
)
def test_a_variant_that_has_served_the_conversation_is_not_held_back_from_it(kept, rule, served):
    """To load it again is no return; one above it is. What is loaded goes before it only if that is preferred."""
    fresh = snapshot(resident_of(SMALL, held_gib=8), free_gib=16, left_bytes=LATELY)
    decision = choose(ask(), CHAIN, fresh, RULES, replace(DOWN, kept=kept, **rule))
    assert decision.chosen.variant.model == served


def test_memory_must_have_been_free_for_as_long_as_the_switch_costs():
    """By what loads took here: three seconds are too few for a load that takes 18, and enough for one that takes 2."""
    fresh = snapshot(resident_of(SMALL, held_gib=8), free_gib=16, left_bytes={0: ((3.0, 10 << 30), (0.0, 24 << 30))})
    for load_s, served in ((18.0, "small:3b"), (1.5, "middle:30b")):
        rules = Rules(costs=LoadCosts(measured_s={MIDDLE.weights: load_s}))
        assert choose(ask(), CHAIN, fresh, rules, DOWN).chosen.variant.model == served
    doubtful = replace(DOWN, patience=2.0)
    assert choose(ask(), CHAIN, fresh, rules, doubtful).chosen.variant.model == "small:3b"


def test_a_smaller_variant_that_is_loaded_for_another_chain_holds_nothing_back():
    """Unless what is loaded is preferred."""
    fresh = snapshot(resident_of(SMALL, held_gib=8), free_gib=16, left_bytes=LATELY)
    assert choose(ask(), CHAIN, fresh, RULES).chosen.variant.model == "middle:30b"
    decision = choose(ask(), CHAIN, fresh, RULES, UpgradeRule(prefer="speed"))
    assert (decision.chosen.variant.model, decision.better.held_by) == ("small:3b", HeldBy.PREFERS)


@pytest.mark.parametrize(
    ("rule", "held_by"),
    [({"is_never": True}, HeldBy.NEVER), ({"max_load_wait_s": 10.0}, HeldBy.LOAD_WAIT), ({"is_spent": True}, None)],
)
def test_a_bigger_variant_that_fits_beside_the_smaller_one_is_a_return_too(rule, held_by):
    """It makes the request wait, but if it is in vain nothing is lost: neither budget nor patience are asked."""
    loaded = resident_of(SMALL, held_gib=8, free_at_load_gib=48)
    roomy = snapshot(loaded, free_gib=40, total_gib=48, left_bytes=LATELY)
    decision = choose(ask(num_ctx=8192), chain_of("middle:30b", "small:3b"), roomy, RULES, replace(DOWN, **rule))
    first = decision.verdicts[0]
    assert (first.plan.evict, first.is_upgrade, first.held_by) == ((), True, held_by)


def test_what_another_client_has_loaded_is_loaded_for_who_prefers_that():
    """To take it over costs nothing."""
    theirs = resident_of(MIDDLE, held_gib=20, options=None, context_length=32768)
    both = snapshot(theirs, resident_of(SMALL, held_gib=4), free_gib=0)
    decision = choose(ask(num_ctx=8192), CHAIN, both, RULES, UpgradeRule(prefer="speed"))
    assert (decision.chosen.variant.model, decision.chosen.plan.adopts) == ("middle:30b", True)


def test_with_speed_preferred_a_load_is_made_where_nothing_of_the_chain_is_loaded():
    """Something must be."""
    decision = choose(ask(), CHAIN, snapshot(), RULES, UpgradeRule(prefer="speed"))
    assert (decision.chosen.variant.model, decision.better) == ("middle:30b", None)


def test_upgrade_is_taken_when_nothing_holds_it_back():
    """With budget left and memory that lasts the bigger variant is loaded."""
    loaded = resident_of(SMALL, held_gib=8)
    decision = choose(ask(), CHAIN, snapshot(loaded, free_gib=16), RULES, DOWN)
    assert decision.chosen.variant.model == "middle:30b"
    assert decision.chosen.plan.evict == (SMALL.weights,)


def test_switch_to_a_smaller_variant_is_immediate():
    """If no variant of the chain is resident, a switch is not an upgrade and the budget does not hold it back."""
    other = facts_of("other:30b", 18)
    loaded = resident_of(other, held_gib=20)
    decision = choose(ask(), CHAIN, snapshot(loaded, free_gib=4), RULES, replace(DOWN, is_spent=True))
    assert decision.chosen.variant.model == "middle:30b"


def test_missing_incapable_and_short_variants_are_skipped():
    """Cases 1 to 3 each have their verdict."""
    blind, short = facts_of("blind:7b", 4), facts_of("short:7b", 4, context_length=4096)
    eye = facts_of("eye:3b", 2, capabilities=("completion", "vision"))
    short = replace(short, capabilities=frozenset({"completion", "vision"}))
    chain = chain_of("absent:1b", "blind:7b", "short:7b", "eye:3b")
    request = InferenceRequest("absent:1b", needs=frozenset({"completion", "vision"}), num_ctx=16384)
    world = replace(snapshot(), catalog=catalog_of(blind, short, eye))
    decision = choose(request, chain, world, RULES)
    assert kinds(decision) == [
        VerdictKind.MISSING,
        VerdictKind.INCAPABLE,
        VerdictKind.CONTEXT,
        VerdictKind.FITS,
    ]


def test_embedding_never_changes_the_model():
    """Another embedder is refused even though it fits; another quantization of the same one is not."""
    one = facts_of("embed:f16", 30, capabilities=("embedding",))
    same = facts_of("embed:q8", 1, capabilities=("embedding",))
    same = replace(same, parameter_size=one.parameter_size)
    other = facts_of("other-embed", 1, capabilities=("embedding",))
    request = InferenceRequest("embed:f16", needs=frozenset({"embedding"}))
    world = replace(snapshot(), catalog=catalog_of(one, same, other))
    decision = choose(request, chain_of("embed:f16", "other-embed", "embed:q8"), world, RULES)
    assert decision.chosen.variant.model == "embed:q8"
    assert decision.verdicts[1].kind is VerdictKind.INCAPABLE
    assert decision.chosen.plan.options.num_ctx is None


def test_nothing_fits_is_rejected_with_a_verdict_for_each():
    """A chain of one model that is too big is rejected with its verdict."""
    decision = choose(ask(), chain_of("big:70b"), snapshot(), RULES)
    assert (decision.outcome, decision.chosen, decision.reason) == (Outcome.REJECTED, None, "rejected")
    assert kinds(decision) == [VerdictKind.TOO_BIG]


def test_empty_chain_is_rejected():
    """A chain without variants has nothing to choose from."""
    assert choose(ask(), Chain("empty", ()), snapshot(), RULES).outcome is Outcome.REJECTED


def test_no_gpu_passes_through():
    """Where there is no GPU, nothing is decided."""
    decision = choose(ask(), CHAIN, replace(snapshot(), gpus=()), RULES)
    assert decision.outcome is Outcome.PASSTHROUGH


def test_without_probe_the_first_variant_is_tried_alone():
    """Verify mode starts from the top and makes the card empty first."""
    decision = choose(ask(), CHAIN, replace(snapshot(resident_of(SMALL)), gpus=None), RULES)
    assert decision.chosen.kind is VerdictKind.RESIDENT or decision.chosen.kind is VerdictKind.TRIES
    alone = choose(ask(), CHAIN, replace(snapshot(), gpus=None), RULES)
    assert alone.chosen.variant.model == "big:70b"
    assert alone.chosen.kind is VerdictKind.TRIES


def test_barred_weights_are_skipped_with_their_reason():
    """A model that just failed to load is not tried again at once."""
    decision = choose(ask(), CHAIN, snapshot(barred={MIDDLE.weights: "the load failed"}), RULES)
    assert decision.chosen.variant.model == "small:3b"
    assert decision.verdicts[1].detail == "the load failed"


def test_shift_is_a_runner_option_of_its_own():
    """A request that forbids shifting is not served by a runner that shifts."""
    loaded = resident_of(SMALL, options=LoadOptions(num_ctx=32768, num_batch=512, shift=True))
    request = InferenceRequest("small:3b", options=LoadOptions(shift=False))
    decision = choose(request, chain_of("small:3b"), snapshot(loaded, free_gib=20), RULES)
    assert decision.chosen.kind is VerdictKind.FITS
    assert decision.chosen.plan.options.shift is False


def test_chain_entry_names_its_own_context():
    """num_ctx of an entry counts if the request names none; max means the model's own."""
    chain = Chain("small:3b", (Variant("small:3b", 4096),))
    assert choose(InferenceRequest("small:3b"), chain, snapshot(), RULES).chosen.num_ctx == 4096
    most = Chain("small:3b", (Variant("small:3b", "max"),))
    assert choose(InferenceRequest("small:3b"), most, snapshot(), RULES).chosen.num_ctx == 131072


def spill_of(facts, num_ctx):
    return Observation(facts.weights, num_ctx, 512, 1, "f16", (), "", 0, 0, True, 0, 100.0)


def test_without_probe_a_model_that_spilled_is_tried_smaller_then_skipped():
    """Verify mode tries the least context, then the next variant."""
    blind = replace(snapshot(), gpus=None)
    settings = ServerSettings(version="")
    once = Rules(machine=MachineRules(settings, learned=Learned.of([spill_of(BIG, 32768)]), now_s=101.0))
    assert choose(ask(), CHAIN, blind, once).chosen.num_ctx == 8192
    twice = MachineRules(settings, learned=Learned.of([spill_of(BIG, 32768), spill_of(BIG, 8192)]), now_s=101.0)
    assert choose(ask(), CHAIN, blind, Rules(machine=twice)).chosen.variant.model == "middle:30b"


def test_memory_that_was_freed_lately_does_not_hold_a_first_load_back():
    """Nothing serves the chain meanwhile."""
    empty = snapshot(left_bytes=LATELY)
    assert choose(ask(), CHAIN, empty, RULES, DOWN).chosen.variant.model == "middle:30b"


def test_variant_that_spilled_at_this_free_level_is_skipped():
    """It would fit by the formula, but a load with as much free has spilled: the next variant serves."""
    spill = Observation(
        MIDDLE.weights, 8192, 512, 1, "f16", ("card",), "", 0, 23 << 30, True, 24 << 30, 100.0, size_bytes=1
    )
    rules = Rules(machine=MachineRules(ServerSettings(version=""), learned=Learned.of([spill]), now_s=101.0))
    decision = choose(ask(num_ctx=8192), CHAIN, snapshot(), rules)
    assert decision.verdicts[1].kind is VerdictKind.SPILLED
    assert decision.verdicts[1].detail == "it spilled before at this free level"
    assert decision.chosen.variant.model == "small:3b"


@pytest.mark.parametrize("need", ["vision", "tools", "thinking", "insert", "embedding", "context"])
def test_a_fallback_never_crosses_what_the_request_needs_c10(need):
    """If only the asked model can serve the request and it does not fit, nothing else is chosen."""
    able = ("completion", "embedding") if need == "embedding" else ("completion", *({need} - {"context"}))
    big = facts_of("big:70b", 40, capabilities=able, context_length=131072)
    small = facts_of("small:3b", 2, context_length=131072 if need != "context" else 8192)
    request = InferenceRequest(
        "big:70b",
        num_ctx=65536 if need == "context" else 8192,
        needs=frozenset(
            {"completion"} if need == "context" else {need} if need == "embedding" else {"completion", need}
        ),
    )
    world = replace(snapshot(), catalog=catalog_of(big, small))
    decision = choose(request, chain_of("big:70b", "small:3b"), world, RULES)
    assert decision.chosen is None
    assert kinds(decision)[1] is (VerdictKind.CONTEXT if need == "context" else VerdictKind.INCAPABLE)


def automatic(**more):
    """Return a request that cannot carry options."""
    return InferenceRequest("small:3b", is_automatic=True, **more)


def test_a_request_without_options_loads_with_ollamas_own_counted_at_their_largest():
    """32768 at 24 GB, batch 2048; the load itself names nothing."""
    decision = choose(automatic(), chain_of("small:3b"), snapshot(), RULES)
    plan = decision.chosen.plan
    assert plan.options == LoadOptions()
    assert (plan.counted.num_ctx, plan.counted.num_batch, plan.counted.main_gpu) == (32768, 2048, None)


def test_a_request_without_options_uses_only_a_runner_that_has_ollamas_own():
    """A runner with explicit options would be reloaded by it; another client's runner is adopted."""
    explicit = resident_of(SMALL, held_gib=8, options=LoadOptions(num_ctx=32768, num_batch=512))
    assert choose(automatic(), chain_of("small:3b"), snapshot(explicit), RULES).chosen.kind is VerdictKind.FITS
    own = resident_of(SMALL, held_gib=8, options=LoadOptions())
    assert choose(automatic(), chain_of("small:3b"), snapshot(own), RULES).chosen.kind is VerdictKind.RESIDENT
    foreign = resident_of(SMALL, held_gib=8, options=None)
    adopting = choose(automatic(), chain_of("small:3b"), snapshot(foreign), RULES).chosen.plan
    assert (adopting.adopts, adopting.options) == (True, LoadOptions())


def test_a_request_without_options_is_tried_with_ollamas_own_in_verify_mode():
    """The load names nothing there either."""
    decision = choose(automatic(), chain_of("small:3b"), replace(snapshot(), gpus=None), RULES)
    assert (decision.chosen.kind, decision.chosen.plan.options) == (VerdictKind.TRIES, LoadOptions())


def test_a_reload_with_ollamas_own_context_is_counted_with_that_and_not_with_headroom():
    """Ollama loads what it loads: a load that is counted with more would teach that the model takes less."""
    rules = Rules(machine=MachineRules(settings=ServerSettings(context_length=8192)))
    smaller = resident_of(SMALL, held_gib=3, context_length=4096, options=LoadOptions(num_ctx=4096, num_batch=512))
    chosen = choose(automatic(), chain_of("small:3b"), snapshot(smaller, free_gib=20.0), rules).chosen
    assert (chosen.num_ctx, chosen.plan.options, chosen.plan.counted.num_ctx) == (8192, LoadOptions(), 8192)


def test_rounding_a_named_context_costs_no_variant():
    """18432 do not fit, the 16,500 that were asked for do: the bigger variant serves with those, padded."""
    big, small = facts_of("m:20b", 20), facts_of("m:5b", 5)
    tight = next(
        gib
        for gib in (gib / 64 for gib in range(20 * 64, 26 * 64))
        if choose_one(big, small, gib, 16640).variant.model == "m:20b"
    )
    assert choose_one(big, small, tight, 18432).variant.model == "m:5b"
    chosen = choose_one(big, small, tight, 16500)
    assert (chosen.variant.model, chosen.num_ctx) == ("m:20b", 16640)
    assert choose_one(big, small, tight + 1, 16500).num_ctx == 18432


def choose_one(big, small, free_gib, num_ctx):
    """Return what serves `num_ctx` on a card with this much free."""
    snapshot = Snapshot((gpu_of(total_gib=26, free_gib=free_gib),), catalog=catalog_of(big, small))
    return choose(InferenceRequest("m:20b", num_ctx=num_ctx), chain_of("m:20b", "m:5b"), snapshot, Rules()).chosen


def test_behind_a_variant_that_is_held_back_the_next_that_may_be_loaded_serves():
    """Not the loaded one after it: what holds the bigger back does not concern the smaller."""
    medium = facts_of("medium:8b", 8)
    chain = chain_of("middle:30b", medium.name, "small:3b")
    fresh = snapshot(resident_of(SMALL, held_gib=8), free_gib=16, left_bytes={0: ((1.5, 16 << 30), (0.0, 24 << 30))})
    world = replace(fresh, catalog=catalog_of(MIDDLE, medium, SMALL))
    decision = choose(InferenceRequest("middle:30b"), chain, world, RULES, DOWN)
    assert [verdict.kind for verdict in decision.verdicts] == [VerdictKind.HELD_BACK, VerdictKind.FITS]
    assert decision.chosen.variant.model == medium.name


def test_a_context_that_the_chain_names_gets_no_headroom():
    """The operator says how much it is; a client's own grows."""
    loaded = resident_of(SMALL, held_gib=4, num_ctx=4096)
    for num_ctx, request, expected in (
        (8192, InferenceRequest("small:3b"), 8192),
        (None, InferenceRequest("small:3b", num_ctx=8192), 16384),
    ):
        chain = Chain("small:3b", (Variant("small:3b", num_ctx),))
        assert choose(request, chain, snapshot(loaded, free_gib=20), RULES).chosen.plan.options.num_ctx == expected
