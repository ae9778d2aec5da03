"""What a node offers for a request, in verdicts: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.decision.verdict import Verdict, VerdictKind
from router.core.nodes.offers import verdict_of
from router.core.nodes.wanted import WantedVariant, wanted_of
from router.core.payload.read import InferenceRequest
from tests.core.nodes.test_choice import RULES, choice_of, one_of, state


def wanted(name: str) -> WantedVariant:
    _, index = choice_of(state("a"))
    return wanted_of(InferenceRequest(name), one_of(name), index.catalog, RULES).variants[0]


@pytest.mark.parametrize(("barred", "kind"), [(("w-big",), VerdictKind.FAILED), (("",), VerdictKind.NO_GPU)])
def test_the_verdict_on_what_a_node_does_not_load_says_why(barred: tuple[str, ...], kind: VerdictKind) -> None:
    """One model, or all; what is not barred there fits."""
    assert verdict_of(state("a", barred=barred), wanted("big"), 0.0)[0].kind is kind
    assert verdict_of(state("a", barred=("w-small",)), wanted("big"), 0.0)[0].kind is VerdictKind.FITS


def test_what_is_to_be_said_of_a_variant_everywhere_is_said_of_every_node_that_has_it() -> None:
    """Whatever that node holds or could load."""
    one = wanted("big")
    said = Verdict(one.variant, VerdictKind.TOO_BIG, one.num_ctx)
    assert verdict_of(state("a"), replace(one, verdict=said), 0.0) == (said, 0)
