"""Why a smaller variant serves: what is true of a model wherever it is names no place."""

from __future__ import annotations

import pytest

from router.core.decision.chain import Variant
from router.core.decision.fleet.offer import Offer
from router.core.decision.fleet.passed_over import passed_over
from router.core.decision.fleet.rank import rank
from router.core.decision.verdict import Decision, Outcome, Verdict, VerdictKind


def offer(place: str, kind: VerdictKind) -> Offer:
    """Return a place where the small variant is loaded, and the big one is passed over."""
    small = Verdict(Variant("small"), VerdictKind.RESIDENT)
    return Offer(place, Decision(Outcome.FALLBACK, small, (Verdict(Variant("big"), kind), small)))


@pytest.mark.parametrize("kind", [VerdictKind.CONTEXT, VerdictKind.INCAPABLE])
def test_what_a_model_cannot_do_anywhere_is_said_of_no_place(kind: VerdictKind) -> None:
    found = passed_over(rank([offer("desk", kind), offer("tower", kind)], 0))
    assert found.words.startswith("big ")
    assert "desk" not in found.words
    assert "tower" not in found.words
    assert found.cause == kind.name.lower()


def test_what_one_place_lacks_is_said_of_it() -> None:
    """And of every backend if it is so of each."""
    too_big, missing = VerdictKind.TOO_BIG, VerdictKind.MISSING
    one = passed_over(rank([offer("desk", missing), offer("tower", too_big)], 0))
    assert (one.words, one.cause) == ("big too big on tower", "too_big")
    both = passed_over(rank([offer("desk", too_big), offer("tower", too_big)], 0))
    assert both.words == "big too big on every backend"
