"""Decisions as text and as data, names of derived tags, and the repr of a snapshot."""

from dataclasses import replace

from router.core.decision.policy import choose
from router.core.decision.report import as_data, line, refusal
from router.core.decision.snapshot import Snapshot
from router.core.decision.verdict import Rules, VerdictKind
from router.core.ollama.derived_names import derived_name, is_derived, parameters_of
from router.core.ollama.names import ModelName
from router.core.ollama.runner import LoadOptions
from router.core.payload.read import InferenceRequest
from tests.core.facts import catalog_of, chain_of, facts_of, gpu_of, resident_of

BIG, SMALL = facts_of("big:70b", 40), facts_of("small:3b", 2)
SNAPSHOT = Snapshot((gpu_of(),), catalog=catalog_of(BIG, SMALL))


def test_a_verdict_is_one_line_with_model_context_reason_and_bytes():
    """It is what `explain`, the log and a refusal show of one variant."""
    decision = choose(InferenceRequest("big:70b"), chain_of("big:70b", "absent:1b"), SNAPSHOT, Rules())
    assert line(decision.verdicts[0]).startswith("big:70b at 8192: too big (needs 43")
    assert line(decision.verdicts[1]) == "absent:1b: not installed"
    assert refusal(chain_of("big:70b"), decision).count(";") == 1
    barred = replace(SNAPSHOT, barred={SMALL.weights: "the load failed"})
    verdict = choose(InferenceRequest("small:3b"), chain_of("small:3b"), barred, Rules()).verdicts[0]
    assert line(verdict) == "small:3b at 8192: could not be loaded, the load failed"


def test_decision_as_data_has_every_variant_and_its_evictions():
    """The JSON form names the chosen variant, the verdicts and the evictions."""
    world = Snapshot((gpu_of(free_gib=1),), (resident_of(BIG, held_gib=23),), catalog=SNAPSHOT.catalog)
    chain = chain_of("small:3b")
    data = as_data(chain, choose(InferenceRequest("small:3b"), chain, world, Rules()))
    assert (data["chosen"], data["outcome"]) == ("small:3b", "exact")
    assert data["variants"][0]["evicts"] == [BIG.weights]
    nothing = as_data(chain, choose(InferenceRequest("x"), chain_of("x"), world, Rules()))
    assert nothing["chosen"] is None


def test_variant_that_is_being_loaded_is_waited_for():
    """It is chosen before anything smaller."""
    world = Snapshot((gpu_of(free_gib=1),), catalog=SNAPSHOT.catalog, loading=(BIG.weights, 32768))
    decision = choose(InferenceRequest("big:70b"), chain_of("big:70b", "small:3b"), world, Rules())
    assert decision.chosen.kind is VerdictKind.LOADING


def test_resident_without_known_weights_is_found_by_name():
    """An upstream that hides the blob is matched by the canonical name."""
    bare = facts_of("bare:3b", 2)
    loaded = resident_of(bare, weights="")
    decision = choose(
        InferenceRequest("bare:3b"),
        chain_of("bare:3b"),
        Snapshot((gpu_of(),), (loaded,), catalog=catalog_of(bare)),
        Rules(),
    )
    assert decision.chosen.kind is VerdictKind.RESIDENT


def test_derived_names_are_valid_names_of_their_own_namespace():
    """One name per variant and options, within Ollama's grammar, whatever the variant is called."""
    options = LoadOptions(num_ctx=16384, num_batch=512, main_gpu=1)
    plain = derived_name("llama3.3:70b-instruct-q4_K_M", BIG.weights, options)
    assert is_derived(plain)
    assert ModelName.parse(plain).key
    others = (("sha256-aa", options), (BIG.weights, LoadOptions(num_ctx=8192, num_batch=512)))
    assert plain not in {derived_name("llama3.3:70b-instruct-q4_K_M", *other) for other in others}
    long = derived_name("team/" + "m" * 80 + ":" + "t" * 80, "sha256-" + "a" * 64, options)
    assert ModelName.parse(long).key
    assert parameters_of(options) == {"num_ctx": 16384, "num_batch": 512, "main_gpu": 1}
    assert parameters_of(LoadOptions()) == {}
    assert not is_derived("llama3.2:3b")


def test_repr_of_a_snapshot_shows_free_memory_and_residents():
    """It is for logs and failing tests."""
    assert repr(SNAPSHOT) == "<Snapshot [free 24.0 GiB, 0 resident]>"
    assert "unknown" in repr(Snapshot(None))
