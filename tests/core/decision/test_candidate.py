"""The finding on one variant where nothing measures memory, and where a request can carry no options."""

from dataclasses import replace

import pytest

from router.core.decision.candidate import evaluator
from router.core.decision.chain import Chain, Variant
from router.core.decision.snapshot import Snapshot
from router.core.decision.verdict import Decision, Outcome, Rules, VerdictKind
from router.core.ollama.options import LARGEST_BATCH
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest
from tests.core.facts import catalog_of, facts_of, gpu_of, resident_of

MODEL, OTHER = facts_of("model:8b", 5), facts_of("other:3b", 2)
CATALOG = catalog_of(MODEL, OTHER)
UNKNOWN = Snapshot(None, catalog=CATALOG)


def verdict_on(request, snapshot):
    look = evaluator(request, MODEL, MODEL.context_length, snapshot, Rules())
    return look(Variant(MODEL.name))


@pytest.mark.parametrize("snapshot", [UNKNOWN, Snapshot((gpu_of(),), catalog=CATALOG)], ids=["no probe", "probe"])
def test_a_request_that_carries_no_options_gets_a_load_with_ollamas_own(snapshot):
    """The plan names none, so that the request reaches that runner; its bytes are counted at the largest batch."""
    plan = verdict_on(InferenceRequest(MODEL.name, is_automatic=True), snapshot).plan
    assert plan.options == LoadOptions()
    assert plan.counted.num_batch == LARGEST_BATCH
    assert plan.counted.num_ctx


def test_without_a_probe_a_request_that_carries_options_gets_a_load_with_exactly_those():
    """The largest context by the rules; what Ollama may evict for it must be idle."""
    residents = (resident_of(OTHER, order=1, in_flight=1),)
    verdict = verdict_on(InferenceRequest(MODEL.name), replace(UNKNOWN, residents=residents))
    assert verdict.kind is VerdictKind.TRIES
    assert verdict.plan.options == LoadOptions(num_ctx=32768, num_batch=512)
    assert (verdict.plan.evict, verdict.plan.waits_for) == ((), (OTHER.weights,))


def test_without_a_probe_what_a_spill_has_shown_to_be_too_much_has_no_plan():
    """Also for a request that carries no options."""
    low = replace(UNKNOWN, ceiling_bytes=1)
    for is_automatic in (False, True):
        verdict = verdict_on(InferenceRequest(MODEL.name, is_automatic=is_automatic), low)
        assert (verdict.kind, verdict.plan) == (VerdictKind.TOO_BIG, None)


def test_a_chain_knows_which_of_its_variants_are_installed():
    """In its own order, in its own spelling."""
    chain = Chain("team", (Variant("OTHER:3b"), Variant("absent:1b"), Variant(MODEL.name)))
    assert chain.installed(CATALOG) == ("OTHER:3b", MODEL.name)


def test_a_decision_without_a_choice_is_reported_by_its_outcome():
    """The reason in words where no variant was chosen."""
    assert Decision(Outcome.REJECTED, None, ()).reason == "rejected"
