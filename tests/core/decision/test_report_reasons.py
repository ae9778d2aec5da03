"""The short reason beside each verdict of an explanation."""

import pytest

from router.core.decision.chain import Variant
from router.core.decision.policy import choose
from router.core.decision.report import as_data
from router.core.decision.snapshot import Snapshot
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
