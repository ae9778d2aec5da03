"""The short reason beside each verdict of an explanation."""

from dataclasses import replace

import pytest

from router.core.decision.chain import Variant
from router.core.decision.policy import choose
from router.core.decision.report import as_data, what_if
from router.core.decision.snapshot import Snapshot
from router.core.decision.upgrades import UpgradeRule
from router.core.decision.verdict import Decision, Outcome, Rules, Verdict, VerdictKind
from router.core.payload.read import InferenceRequest
from router.core.units import GIB
from tests.core.facts import catalog_of, chain_of, facts_of, gpu_of, resident_of

BIG, SMALL = facts_of("big:70b", 40), facts_of("small:3b", 2)


def details_of(*verdicts):
    data = as_data(chain_of("x"), Decision(Outcome.REJECTED, None, verdicts))
    return [row["detail"] for row in data["variants"]]


def test_what_does_not_fit_says_by_how_much():
    """Bytes as people say them."""
    world = Snapshot((gpu_of(),), catalog=catalog_of(BIG))
    data = as_data(chain_of(BIG.name), choose(InferenceRequest(BIG.name), chain_of(BIG.name), world, Rules()))
    (row,) = data["variants"]
    assert row["detail"] == f"{(row['need_bytes'] - row['have_bytes']) / GIB:.1f} GiB short"


def test_what_evicts_says_how_many():
    """Nothing is short then."""
    world = Snapshot((gpu_of(free_gib=1),), (resident_of(BIG, held_gib=23),), catalog=catalog_of(BIG, SMALL))
    data = as_data(chain_of(SMALL.name), choose(InferenceRequest(SMALL.name), chain_of(SMALL.name), world, Rules()))
    assert data["variants"][0]["detail"] == "evicts 1"


@pytest.mark.parametrize(
    ("verdict", "detail"),
    [
        (Verdict(Variant("x"), VerdictKind.CONTEXT, detail="at most 2048 tokens"), "at most 2048 tokens"),
        (Verdict(Variant("x"), VerdictKind.MISSING), "not installed"),
        (Verdict(Variant("x"), VerdictKind.FITS), ""),
    ],
)
def test_a_detail_goes_first_and_a_word_that_repeats_the_verdict_is_left_out(verdict, detail):
    """`fits` beside the verdict `fits` says nothing."""
    assert details_of(verdict) == [detail]


def test_what_stands_between_a_request_and_the_best_variant_is_said():
    """The seconds, what is unloaded for it, and what must become idle first, by the names that people know."""
    loaded = resident_of(BIG, held_gib=23, in_flight=1)
    world = Snapshot((gpu_of(free_gib=1),), (loaded,), catalog=catalog_of(BIG, SMALL))
    decision = choose(InferenceRequest(SMALL.name), chain_of(SMALL.name), world, Rules())
    text = "small:3b: a switch that costs about 43 s, unloading big:70b, once big:70b is idle"
    data = as_data(chain_of(SMALL.name), decision, {BIG.weights: BIG.name})
    assert (data["best"], data["below_best"], data["between"]) == (SMALL.name, "", text)
    assert data["variants"][0]["evicts"] == [BIG.name]


def test_what_holds_the_best_variant_back_is_said():
    """Beside what would be served now."""
    world = Snapshot(
        (gpu_of(free_gib=75, total_gib=96),),
        (resident_of(SMALL, held_gib=20, free_at_load_gib=95),),
        catalog=catalog_of(BIG, SMALL),
    )
    rule = UpgradeRule(is_moved_down=True, is_spent=True)
    chain = chain_of(BIG.name, SMALL.name)
    ask = InferenceRequest(BIG.name, num_ctx=4096)
    fits_beside = choose(ask, chain, world, Rules(), rule)
    assert (fits_beside.chosen.variant.model, what_if(fits_beside)) == (
        BIG.name,
        "big:70b: a switch that costs about 40 s",
    )
    tight = replace(world, gpus=(gpu_of(free_gib=30, total_gib=51),))
    data = as_data(chain, choose(ask, chain, tight, Rules(), rule), {SMALL.weights: SMALL.name})
    assert (data["chosen"], data["best"], data["below_best"]) == (SMALL.name, BIG.name, "budget")
    assert data["between"].endswith("unloading small:3b; swaps_per_minute is spent")


def test_nothing_stands_between_where_the_best_is_loaded_or_nothing_fits():
    """No switch would help."""
    loaded = Snapshot((gpu_of(free_gib=4),), (resident_of(SMALL, held_gib=3),), catalog=catalog_of(SMALL))
    assert what_if(choose(InferenceRequest(SMALL.name), chain_of(SMALL.name), loaded, Rules())) == ""
    empty = Snapshot((gpu_of(free_gib=1, total_gib=1),), catalog=catalog_of(BIG))
    assert what_if(choose(InferenceRequest(BIG.name), chain_of(BIG.name), empty, Rules())) == ""
