"""The eight statements about `choose`, on generated cards, residents and chains."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.decision.policy import choose
from router.core.decision.snapshot import Snapshot
from router.core.decision.upgrades import UpgradeRule
from router.core.decision.verdict import USABLE, Outcome, Rules, VerdictKind
from router.core.payload.read import InferenceRequest
from router.core.units import GIB
from tests.core.facts import catalog_of, chain_of, facts_of, gpu_of, resident_of

FACTS = [facts_of(f"m{size}:{size}b", size) for size in (40, 26, 18, 9, 5, 2)]
CATALOG = catalog_of(*FACTS)
RULES = Rules()
CHANGES_MODEL = {Outcome.EXACT, Outcome.FALLBACK}


@st.composite
def worlds(draw, *, splits=False):
    """Draw 1–3 cards with up to three residents, the rest of the memory partly taken by other processes.

    With `splits` some residents are on all cards, and Ollama has lost part of their buffers.
    """
    totals = draw(st.lists(st.sampled_from([8, 12, 24, 48]), min_size=1, max_size=3))
    left = list(totals)
    residents = []
    for order, facts in enumerate(draw(st.permutations(FACTS))[: draw(st.integers(0, 3))]):
        card = draw(st.integers(0, len(totals) - 1))
        held = facts.size_bytes / GIB + 3
        if splits and draw(st.booleans()) and (split := _split(draw, facts, left, order)) is not None:
            residents.append(split)
            continue
        if held > left[card]:
            continue
        left[card] -= held
        busy = draw(st.integers(0, 1))
        residents.append(
            resident_of(
                facts,
                held_gib=held,
                card=card,
                order=order,
                in_flight=busy,
                free_at_load_gib=left[card] + held,
            )
        )
    foreign = [draw(st.floats(0, gib)) for gib in left]
    gpus = tuple(
        gpu_of(index, total, max(0.0, gib - other))
        for index, (total, gib, other) in enumerate(zip(totals, left, foreign, strict=True))
    )
    return Snapshot(gpus, tuple(residents), catalog=CATALOG)


upgrades = st.builds(UpgradeRule, is_moved_down=st.booleans(), is_spent=st.booleans())


def _split(draw, facts, left, order):
    """Return `facts` as loaded over all cards, its parts taken from `left`; None if there is too little left."""
    shares = [draw(st.integers(1, 3)) for _ in left]
    parts = [(facts.size_bytes / GIB + 2) * share / sum(shares) + 0.3 for share in shares]
    if len(left) == 1 or any(part > gib for part, gib in zip(parts, left, strict=True)):
        return None
    had = {card: int(gib * GIB) for card, gib in enumerate(left)}
    left[:] = [gib - part for part, gib in zip(parts, left, strict=True)]
    held = {card: int(part * GIB) for card, part in enumerate(parts)}
    shown = facts.size_bytes - draw(st.integers(0, 2)) * facts.size_bytes // 8
    return resident_of(
        facts, held_bytes=held, order=order, free_at_load_bytes=had, size_bytes=shown, size_vram_bytes=shown
    )


chains = st.integers(0, len(FACTS) - 1).map(lambda first: chain_of(*(facts.name for facts in FACTS[first:])))
requests = st.sampled_from([None, 4096, 16384, 65536]).map(lambda ctx: InferenceRequest("m40:40b", num_ctx=ctx))


def free_after(snapshot, plan):
    """Return what the plan's cards have after its evictions."""
    going = [resident for resident in snapshot.residents if resident.weights in plan.evict]
    return sum(
        gpu.free_bytes + sum(resident.held_bytes.get(gpu.index, 0) for resident in going)
        for gpu in snapshot.gpus
        if gpu.index in plan.cards
    )


@given(worlds(), chains, requests)
def test_sound_a_chosen_variant_fits_or_is_resident(snapshot, chain, request):
    """The footprint is at most free + evicted memory."""
    chosen = choose(request, chain, snapshot, RULES).chosen
    if chosen is None:
        return
    if chosen.kind is VerdictKind.RESIDENT:
        assert chosen.resident.is_fully_resident
        return
    assert sum(chosen.plan.need_by_card) <= free_after(snapshot, chosen.plan)


@given(worlds(), chains, requests, upgrades)
def test_maximal_no_earlier_variant_is_usable_except_held_back_ones(snapshot, chain, request, rule):
    """Every variant in front of the chosen one cannot serve, or is an upgrade that the budget holds back."""
    decision = choose(request, chain, snapshot, RULES, rule)
    if decision.chosen is None:
        return
    before = decision.verdicts[: decision.verdicts.index(decision.chosen)]
    assert not any(verdict.kind in USABLE for verdict in before)
    if any(verdict.kind is VerdictKind.HELD_BACK for verdict in before):
        assert (rule.is_moved_down, rule.is_spent) == (True, True)


@given(worlds(), chains, requests, st.floats(0, 8))
def test_monotone_more_free_memory_never_yields_a_smaller_variant(snapshot, chain, request, more_gib):
    """With the same residents and more free memory the chosen variant is the same or an earlier one."""
    roomy = replace(
        snapshot,
        gpus=tuple(
            replace(gpu, free_bytes=gpu.free_bytes + int(more_gib * GIB), total_bytes=gpu.total_bytes + int(8 * GIB))
            for gpu in snapshot.gpus
        ),
    )
    tight = replace(
        snapshot, gpus=tuple(replace(gpu, total_bytes=gpu.total_bytes + int(8 * GIB)) for gpu in snapshot.gpus)
    )
    order = [variant.model for variant in chain.variants]
    few, many = (choose(request, chain, world, RULES).chosen for world in (tight, roomy))
    if few is not None:
        assert many is not None
        assert order.index(many.variant.model) <= order.index(few.variant.model)


@given(worlds(), chains, requests)
def test_closed_the_chosen_variant_is_of_the_chain(snapshot, chain, request):
    """Nothing outside the chain is ever chosen."""
    decision = choose(request, chain, snapshot, RULES)
    if decision.outcome in CHANGES_MODEL:
        assert decision.chosen.variant in chain.variants
    else:
        assert decision.chosen is None


@given(worlds(), chains, requests, st.randoms())
def test_stable_the_order_of_residents_does_not_matter(snapshot, chain, request, random):
    """Shuffled residents give the same choice."""
    residents = list(snapshot.residents)
    random.shuffle(residents)
    one = choose(request, chain, snapshot, RULES)
    other = choose(request, chain, replace(snapshot, residents=tuple(residents)), RULES)
    assert [v.kind for v in one.verdicts] == [v.kind for v in other.verdicts]
    assert (one.chosen and one.chosen.plan) == (other.chosen and other.chosen.plan)


@given(worlds(), chains, requests)
def test_idempotent_asking_for_the_chosen_variant_chooses_it_again(snapshot, chain, request):
    """The chosen variant, asked for alone, is chosen under the same snapshot."""
    chosen = choose(request, chain, snapshot, RULES).chosen
    if chosen is not None:
        again = choose(request, chain_of(chosen.variant.model), snapshot, RULES).chosen
        assert again is not None
        assert again.variant == chosen.variant


@given(worlds(), chains, requests)
@settings(max_examples=50)
def test_total_and_explained_one_verdict_per_evaluated_variant(snapshot, chain, request):
    """No exception; verdicts follow the chain; the chosen one is among them."""
    decision = choose(request, chain, snapshot, RULES)
    evaluated = [verdict.variant for verdict in decision.verdicts]
    assert evaluated == list(chain.variants[: len(evaluated)])
    if decision.chosen is None:
        assert len(evaluated) == len(chain.variants)
    else:
        assert decision.chosen in decision.verdicts


@given(worlds(), chains, requests)
def test_no_request_in_flight_is_interrupted(snapshot, chain, request):
    """A plan waits for each busy resident that it evicts."""
    chosen = choose(request, chain, snapshot, RULES).chosen
    if chosen is not None and chosen.plan is not None:
        busy = {resident.weights for resident in snapshot.residents if resident.in_flight}
        assert set(chosen.plan.waits_for) == busy & set(chosen.plan.evict)
