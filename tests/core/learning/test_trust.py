"""For how long lessons count; that none keeps a model out of an empty card for ever; what a card's loads share."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.decision.need import MachineRules
from router.core.decision.snapshot import Snapshot
from router.core.decision.switching import Plan, plan_at
from router.core.learning.observation import Observation
from router.core.learning.residuals import Learned
from router.core.learning.trust import OFTEN_S, ONCE_S, card_constants
from router.core.memory.options import MemoryOptions
from router.core.ollama.options import ServerSettings
from router.core.ollama.runner import LoadOptions
from router.core.units import GIB, MIB
from tests.core.facts import catalog_of, facts_of, gpu_of

GPUS = ("card",)
VERSION = "0.33.0"
OPTIONS = MemoryOptions(8192)


def load(weights="a", mib=0, at_s=1000.0, **changes):
    """Return a load that took `mib` beyond the formula's 10 GiB."""
    seen = Observation(weights, 8192, 512, 1, "f16", GPUS, VERSION, int(10 * GIB + mib * MIB), 10 * GIB, False,
                       20 * GIB, at_s)  # fmt: skip
    return replace(seen, **changes)


def residual_mib(learned, now_s, weights="a", names=GPUS):
    return learned.residual_bytes(weights, OPTIONS, names, VERSION, now_s=now_s)[0] // MIB


def test_a_large_need_that_one_load_showed_is_tried_again_after_an_hour():
    """Another program may have been the cause."""
    learned = Learned.of([load(mib=600)])
    assert residual_mib(learned, 1000 + ONCE_S - 1) == 600
    assert residual_mib(learned, 1000 + ONCE_S) == 0
    assert residual_mib(Learned.of([load(mib=200)]), 1000 + ONCE_S) == 200


def test_a_need_that_two_loads_showed_is_believed_for_a_day():
    """Then the load shows it anew."""
    learned = Learned.of([load(mib=600, at_s=500.0), load(mib=610)])
    assert residual_mib(learned, 1000 + ONCE_S) == 610
    assert residual_mib(learned, 1000 + OFTEN_S) == 0


def test_a_spill_at_the_next_try_confirms_what_one_load_showed():
    """Then it is tried once a day, not once an hour."""
    again = load(mib=0, at_s=5000.0, spilled=True, size_bytes=9 * GIB, size_vram_bytes=8 * GIB)
    learned = Learned.of([load(mib=600), again])
    assert residual_mib(learned, 5000 + ONCE_S) == 600
    assert residual_mib(learned, 5000 + OFTEN_S) == 0


def test_after_a_restart_a_smaller_need_counts_again_once_a_load_has_shown_it():
    """The settings may be others now: the KV type that was quantised, for example."""
    seen = [load("a", -900), load("b", -900)]
    assert residual_mib(Learned.of(seen), 5000.0) == -900
    assert residual_mib(Learned.of(seen, 2000.0), 5000.0) == 0
    own = Learned.of([*seen, load("a", -900, at_s=2100.0)], 2000.0)
    assert residual_mib(own, 5000.0) == residual_mib(own, 5000.0, "b") == -900
    changed = Learned.of([*seen, load("b", 0, at_s=2100.0)], 2000.0)
    assert residual_mib(changed, 5000.0) == 0


def test_every_load_on_a_card_takes_a_constant_that_two_models_agree_on():
    """A driver context that is larger than assumed costs two loads, not one per model; other cards are others."""
    learned = Learned.of([load("a", 200), load("b", 204)])
    assert residual_mib(learned, 1100.0, "new") == 204
    assert residual_mib(learned, 1100.0, "new", ("card", "card")) == 408
    assert residual_mib(learned, 1100.0, "new", ("another",)) == 0
    assert residual_mib(learned, 1000 + OFTEN_S, "new") == 0
    assert card_constants([load("a", 336)]) == {}
    assert card_constants([load("a", 336), load("b", 0)]) == {}
    assert card_constants([load("a", 30), load("b", 31)]) == {}


def test_loads_that_spilled_show_the_constant_too():
    """By what the probe saw go and what ps shows in main memory."""
    spilled = [
        load(name, spilled=True, measured_bytes=8 * GIB + 336 * MIB, size_bytes=9 * GIB, size_vram_bytes=7 * GIB)
        for name in ("a", "b")
    ]
    assert residual_mib(Learned.of(spilled), 1100.0, "new") == 336


FACTS = facts_of("m:9b", 9)
SEEN = st.builds(
    Observation,
    weights=st.sampled_from([FACTS.weights, "sha256-other", "sha256-third"]),
    num_ctx=st.sampled_from([2048, 8192, 131072]),
    num_batch=st.sampled_from([512, 2048]),
    num_parallel=st.sampled_from([1, 4]),
    kv_type=st.sampled_from(["f16", "q8_0"]),
    gpu_names=st.sampled_from([("card",), (), ("other",), ("card", "card")]),
    ollama_version=st.sampled_from([VERSION, "0.30.0"]),
    measured_bytes=st.integers(0, 100 * GIB),
    predicted_bytes=st.integers(0, 100 * GIB),
    spilled=st.booleans(),
    free_before_bytes=st.integers(0, 50 * GIB),
    at_s=st.floats(1e9, 1e9 + 1e6),
    size_bytes=st.integers(0, 100 * GIB),
    size_vram_bytes=st.integers(0, 100 * GIB),
    cache_bytes=st.integers(0, 20 * GIB),
)


@settings(deadline=None)
@given(st.lists(SEEN, max_size=12), st.floats(0, 2e9))
def test_nothing_learned_keeps_a_model_out_of_an_empty_card_for_ever(seen, restarted_s):
    """A day after the last load it is planned on every card that has room by the formula."""
    card = gpu_of(total_gib=12)
    snapshot = Snapshot((card,), catalog=catalog_of(FACTS))
    learned = Learned.of(seen, restarted_s)
    rules = MachineRules(ServerSettings(version=VERSION), learned=learned, now_s=1e9 + 1e6 + OFTEN_S)
    options = LoadOptions(num_ctx=8192, num_batch=512)
    assert isinstance(plan_at(FACTS, options, snapshot, replace(rules, learned=Learned.of([])), may_pin=True), Plan)
    assert isinstance(plan_at(FACTS, options, snapshot, rules, may_pin=True), Plan)
