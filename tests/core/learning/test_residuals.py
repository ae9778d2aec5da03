"""What loads teach: residuals, error bars, bans, hidden settings, a change of version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.learning.drift import hidden_setting
from router.core.learning.residuals import BAN_S, LEAST_SAFETY_BYTES, Learned, Observation
from router.core.memory.options import MemoryOptions
from router.core.units import GIB, MIB

OPTIONS = MemoryOptions(8192)
GPUS = ("RTX 3090",)


def load(weights: str = "a", residual_mib: float = 0, **changes: object) -> Observation:
    """Return a load that took `residual_mib` beyond the formula's 10 GiB."""
    seen = Observation(weights, 8192, 512, 1, "f16", GPUS, "0.33.0", int(10 * GIB + residual_mib * MIB), 10 * GIB,
                       spilled=False, free_before_bytes=20 * GIB, at_s=1000.0)  # fmt: skip
    return replace(seen, **changes)  # type: ignore[arg-type]


def spill(weights: str = "a", **changes: object) -> Observation:
    """Return a load that spilled: of 20 GiB free the probe saw 18.5 go, and ps reports 6 more in main memory."""
    measured = {"measured_bytes": int(18.5 * GIB), "size_bytes": 24 * GIB, "size_vram_bytes": 18 * GIB}
    return replace(load(weights, spilled=True, **measured), **changes)  # type: ignore[arg-type]


def test_nothing_learned_leaves_the_formula_alone() -> None:
    """No residual, the footprint's own safety."""
    assert Learned.of(()).residual_bytes("a", OPTIONS, GPUS, "0.33.0") == (0, None, "")


def test_one_load_narrows_the_safety() -> None:
    """The same options on the same card: 64 MiB for growth are enough."""
    learned = Learned.of([load(residual_mib=30)])
    assert learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0") == (30 * MIB, LEAST_SAFETY_BYTES, "learned from 1 load")


def test_loads_that_differ_widen_the_error_bar() -> None:
    """The largest recent residual counts, and the spread comes on top."""
    learned = Learned.of([load(residual_mib=30, at_s=1), load(residual_mib=10, at_s=2)])
    assert learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0") == (30 * MIB, 84 * MIB, "learned from 2 loads")


def test_a_jump_of_the_residual_discards_earlier_loads() -> None:
    """Settings were changed; only loads since then count."""
    learned = Learned.of([load(residual_mib=10, at_s=1), load(residual_mib=3000, at_s=2), load(residual_mib=0, at_s=3)])
    residual, _, note = learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0")
    assert (residual, note) == (0, "learned from 1 load")


@pytest.mark.parametrize(
    ("residual_mib", "num_ctx", "expected_mib"),
    [(400, 16384, 800), (400, 4096, 400), (-400, 16384, -400), (-400, 4096, -200)],
)
def test_another_context_takes_the_larger_of_constant_and_proportional(
    residual_mib: int, num_ctx: int, expected_mib: int
) -> None:
    """A hidden slot count grows with the context, a driver context does not; which it is cannot be known."""
    learned = Learned.of([load(residual_mib=residual_mib)])
    residual, safety, _ = learned.residual_bytes("a", MemoryOptions(num_ctx), GPUS, "0.33.0")
    assert residual == expected_mib * MIB
    assert safety is not None
    assert safety > LEAST_SAFETY_BYTES


def test_another_card_widens_the_safety() -> None:
    """Its driver context may differ."""
    learned = Learned.of([load(residual_mib=10)])
    assert learned.residual_bytes("a", OPTIONS, ("RTX 4090",), "0.33.0")[1] == 128 * MIB


def test_another_version_resets_trust() -> None:
    """An old residual may only add, and the formula's own safety stays."""
    more, less = Learned.of([load(residual_mib=500)]), Learned.of([load(residual_mib=-500)])
    residual, safety, note = more.residual_bytes("a", OPTIONS, GPUS, "0.34.0")
    assert (residual, safety) == (500 * MIB, None)
    assert "0.33.0" in note
    assert less.residual_bytes("a", OPTIONS, GPUS, "0.34.0")[0] == 0


def test_a_spilled_load_shows_its_need() -> None:
    """It is what the probe saw go and what ps reports outside; at least what the card had beside the margin."""
    assert spill().residual_bytes == int(14.5 * GIB)
    assert spill(size_bytes=0, size_vram_bytes=0, measured_bytes=5 * GIB).residual_bytes == 9 * GIB


def test_a_spill_counts_for_an_hour() -> None:
    """Something else may have been the cause."""
    learned = Learned.of([spill(at_s=0)])
    assert learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0", now_s=BAN_S - 1)[0] > 0
    assert learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0", now_s=BAN_S) == (0, None, "")
    assert learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0")[1] == 128 * MIB


def test_a_load_without_a_reading_teaches_nothing() -> None:
    """In verify mode nothing is measured."""
    assert Learned.of([load(measured_bytes=0)]).residual_bytes("a", OPTIONS, GPUS, "0.33.0") == (0, None, "")


def test_too_small_a_reading_is_not_believed() -> None:
    """A third less than predicted is the most."""
    assert load(measured_bytes=1 * GIB).residual_bytes == -(10 * GIB) // 3


@pytest.mark.parametrize(
    ("weights", "options", "free_gib", "now_s", "banned"),
    [
        ("a", OPTIONS, 20, 2000, True),
        ("a", OPTIONS, 19, 2000, True),
        ("a", MemoryOptions(16384), 20, 2000, True),
        ("a", OPTIONS, 21, 2000, False),
        ("a", MemoryOptions(4096), 20, 2000, False),
        ("a", MemoryOptions(8192, num_batch=256), 20, 2000, False),
        ("a", MemoryOptions(8192, kv_type="q8_0"), 20, 2000, False),
        ("b", OPTIONS, 20, 2000, False),
        ("a", OPTIONS, 20, 1000 + BAN_S, False),
    ],
)
def test_a_spill_bans_loads_that_ask_no_less_at_that_free_level(
    weights: str, options: MemoryOptions, free_gib: int, now_s: float, banned: bool
) -> None:
    """The ban ends after an hour, with more free, and with less asked."""
    assert Learned.of([spill()]).banned(weights, options, free_gib * GIB, now_s) is banned


def test_a_later_success_lifts_the_ban() -> None:
    """The load asked for no less with no more free."""
    learned = Learned.of([spill(), load(at_s=1500)])
    assert not learned.banned("a", OPTIONS, 20 * GIB, 2000)
    assert Learned.of([spill(), load(at_s=1500, num_ctx=4096)]).banned("a", OPTIONS, 20 * GIB, 2000)
    more = load(at_s=1500, free_before_bytes=30 * GIB, measured_bytes=20 * GIB)
    assert Learned.of([spill(), more]).banned("a", OPTIONS, 20 * GIB, 2000)
    assert Learned.of([spill(), spill(at_s=1500)]).banned("a", OPTIONS, 20 * GIB, 2000)


def test_a_later_load_that_took_less_than_was_free_shows_that_the_spill_had_another_cause() -> None:
    """Though more was free when it was loaded."""
    banned = spill(at_s=1000.0)
    whole = load(free_before_bytes=23 * GIB, at_s=1100.0)
    too_much = load(free_before_bytes=23 * GIB, at_s=1100.0, measured_bytes=int(19.5 * GIB))
    assert not Learned.of([banned, whole]).banned("a", OPTIONS, 20 * GIB, 1200.0)
    assert Learned.of([banned, too_much]).banned("a", OPTIONS, 20 * GIB, 1200.0)


def test_a_later_whole_load_outweighs_the_need_that_a_spill_seemed_to_show() -> None:
    """It asked for no less."""
    spilled, whole = spill(at_s=1000.0), load(residual_mib=30, at_s=1100.0)
    residual, _, _ = Learned.of([spilled, whole]).residual_bytes("a", OPTIONS, GPUS, "0.33.0", now_s=1200.0)
    assert residual == 30 * MIB


def test_bans_are_listed_with_their_end() -> None:
    """The longest first, and only those that stand."""
    seen = [spill(at_s=1000.0), spill("b", at_s=2000.0), spill("c", at_s=1000.0), load("c", at_s=1500.0)]
    bans = Learned.of(seen).bans(2500.0)
    assert [(ban.weights, ban.num_ctx, ban.until_s) for ban in bans] == [
        ("b", 8192, 2000.0 + BAN_S),
        ("a", 8192, 1000.0 + BAN_S),
    ]
    assert [ban.weights for ban in Learned.of(seen).bans(1000.0 + BAN_S)] == ["b"]


def test_a_new_version_lifts_bans() -> None:
    """The rules may have changed."""
    learned = Learned.of([spill(), load("b", at_s=1500, ollama_version="0.34.0")])
    assert not learned.banned("a", OPTIONS, 20 * GIB, 2000)
    assert learned.drift()[0].startswith("Ollama changed from 0.33.0 to 0.34.0")


def test_a_spill_in_verify_mode_counts_for_its_context_and_larger_ones() -> None:
    """Without a reading of free memory only the context is compared."""
    learned = Learned.of([spill(measured_bytes=0, free_before_bytes=0)])
    assert learned.spilled_alone("a", 8192, 2000)
    assert not learned.spilled_alone("a", 4096, 2000)
    assert not learned.spilled_alone("a", None, 2000)
    assert not learned.spilled_alone("b", 8192, 2000)
    later = load(at_s=1500, measured_bytes=0, free_before_bytes=0)
    assert not Learned.of([spill(measured_bytes=0, free_before_bytes=0), later]).spilled_alone("a", 8192, 2000)


def test_hidden_slots_are_recognised_from_two_models() -> None:
    """Both take four times their cache."""
    seen = [load("a", 3 * 512, cache_bytes=512 * MIB), load("b", 3 * 1024, cache_bytes=GIB)]
    learned = Learned.of(seen)
    assert learned.hidden is not None
    assert learned.drift() == (
        "2 models take 4 × the computed cache: the server seems to run with OLLAMA_NUM_PARALLEL=4",
    )
    residual, safety, note = learned.residual_bytes("new", OPTIONS, GPUS, "0.33.0", cache_bytes=256 * MIB)
    assert (residual, safety, note) == (768 * MIB, None, learned.hidden.note)
    assert learned.residual_bytes("new", OPTIONS, GPUS, "0.34.0") == (0, None, "")


def test_a_hidden_kv_type_is_recognised() -> None:
    """A cache in q8_0 takes 0.53 of one in f16."""
    hidden = hidden_setting([load("a", -0.46875 * 2048, cache_bytes=2 * GIB)])
    assert hidden is not None
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in hidden.note
    assert hidden.note.startswith("1 model takes")


def test_one_setting_is_named_rather_than_two_that_fit_a_little_better() -> None:
    """q8_0 takes 0.53 of f16, two slots of q4_0 0.56: with the usual noise either explains the loads."""
    seen = [
        load(name, -0.45 * cache, cache_bytes=cache * MIB) for name, cache in (("a", 1024), ("b", 2048), ("c", 700))
    ]
    hidden = hidden_setting(seen)
    assert hidden is not None
    assert hidden.note.endswith("OLLAMA_KV_CACHE_TYPE=q8_0")


def test_loads_that_spilled_show_hidden_slots_too() -> None:
    """By what the probe saw go and what ps shows in main memory; then a smaller context is known to fit."""
    cache = 2 * GIB
    spilled = [
        spill(name, measured_bytes=14 * GIB, size_bytes=16 * GIB, size_vram_bytes=14 * GIB, cache_bytes=cache)
        for name in ("a", "b", "c")
    ]
    learned = Learned.of(spilled)
    assert learned.hidden is not None
    assert "OLLAMA_NUM_PARALLEL=4" in learned.hidden.note
    asked = MemoryOptions(2048)
    residual, _, _ = learned.residual_bytes("a", asked, GPUS, "0.33.0", cache_bytes=cache // 4, now_s=1100.0)
    assert residual == 3 * cache // 4
    assert learned.residual_bytes("new", asked, GPUS, "0.33.0", cache_bytes=cache // 4)[0] == 3 * cache // 4


def test_a_spill_that_shows_no_need_is_not_explained_by_what_others_revealed() -> None:
    """Its own bound counts."""
    unseen = spill("d", measured_bytes=0, cache_bytes=GIB, at_s=1001.0)
    asked = MemoryOptions(2048)
    alone = Learned.of([unseen]).residual_bytes("d", asked, GPUS, "0.33.0", now_s=1100.0)[0]
    assert settled(unseen).residual_bytes("d", asked, GPUS, "0.33.0", cache_bytes=GIB // 4, now_s=1100.0)[0] == alone


def test_two_hidden_settings_at_once() -> None:
    """Type and slots together, where neither alone explains it."""
    factor = 4 * 1.0625 / 2
    hidden = hidden_setting([load("a", (factor - 1) * 4096, cache_bytes=4 * GIB)])
    assert hidden is not None
    assert "OLLAMA_KV_CACHE_TYPE=q8_0 and OLLAMA_NUM_PARALLEL=4" in hidden.note


def test_an_unexplained_constant_is_reported() -> None:
    """+700 MiB with every model, whatever its cache."""
    hidden = hidden_setting([load("a", 700, cache_bytes=100 * MIB), load("b", 710, cache_bytes=4 * GIB), load("c", 5)])
    assert hidden is not None
    assert hidden.note == "2 models take 705 MiB more than computed, for no known reason"
    assert hidden.residual_bytes(GIB) == 705 * MIB
    less = hidden_setting([load("a", -700)])
    assert less is not None
    assert "700 MiB less" in less.note


def test_small_residuals_are_not_drift() -> None:
    """The formula explains them well enough; residuals that agree on nothing are not explained at all."""
    assert hidden_setting([load("a", 100), spill("b")]) is None
    assert Learned.of([load("a", 100)]).drift() == ()
    assert hidden_setting([load("a", 500), load("b", 9000)]) is None


def test_a_change_seen_at_another_context_discards_the_old_loads() -> None:
    """The old load at this very context was made under other settings; the bound from the newest one counts."""
    before = [load(num_ctx=32768, at_s=1), load(num_ctx=2048, at_s=2)]
    learned = Learned.of([*before, load(residual_mib=300, num_ctx=2048, at_s=3)])
    assert learned.residual_bytes("a", MemoryOptions(32768), GPUS, "0.33.0")[0] == 4800 * MIB
    assert Learned.of(before).residual_bytes("a", MemoryOptions(32768), GPUS, "0.33.0")[0] == 0


def test_between_two_contexts_the_tighter_bound_counts() -> None:
    """Each load bounds the residual from above; growth with the context is not a change of settings."""
    learned = Learned.of([load(residual_mib=200, num_ctx=2048), load(residual_mib=800, num_ctx=16384, at_s=2000)])
    residual, _, note = learned.residual_bytes("a", MemoryOptions(8192), GPUS, "0.33.0")
    assert (residual, note) == (800 * MIB, "learned from 2 loads")
    assert learned.residual_bytes("a", MemoryOptions(32768), GPUS, "0.33.0")[0] == 1600 * MIB


def test_the_hypothesis_that_fits_best_wins() -> None:
    """Three slots of q8_0 would come near for caches of 1 GiB; a constant explains it exactly."""
    hidden = hidden_setting([load("a", 700, cache_bytes=GIB), load("b", 700, cache_bytes=1100 * MIB)])
    assert hidden is not None
    assert hidden.factor == 1.0


def settled(*more: Observation) -> Learned:
    """Return what was learned from three models that each show four slots."""
    shown = [load(name, 3 * cache, cache_bytes=cache * MIB) for name, cache in (("a", 512), ("b", 1024), ("c", 700))]
    return Learned.of([*shown, *more])


def test_a_settled_hypothesis_gives_the_growth_of_the_residual() -> None:
    """With a quarter of the context a model needs a quarter of the addition, not all of it."""
    learned = settled()
    asked = MemoryOptions(2048)
    residual, safety, note = learned.residual_bytes("b", asked, GPUS, "0.33.0", cache_bytes=256 * MIB)
    assert (residual, safety) == (768 * MIB, 192 * MIB)
    assert "OLLAMA_NUM_PARALLEL=4" in note
    assert learned.residual_bytes("b", asked, GPUS, "0.33.0")[0] == 3072 * MIB
    assert learned.residual_bytes("b", OPTIONS, GPUS, "0.33.0", cache_bytes=GIB)[0] == 3072 * MIB


def test_a_load_that_the_hypothesis_does_not_explain_keeps_its_own_residual() -> None:
    """Its cache is unknown, or it is off for another reason."""
    asked = MemoryOptions(2048)
    for odd in (load("d", 5000, cache_bytes=512 * MIB, at_s=900), load("d", 100, at_s=900)):
        with_odd = settled(odd)
        alone = Learned.of([odd]).residual_bytes("d", asked, GPUS, "0.33.0")
        assert with_odd.residual_bytes("d", asked, GPUS, "0.33.0", cache_bytes=128 * MIB)[0] == alone[0]
    small = settled(load("d", 20, cache_bytes=512 * MIB, at_s=900))
    assert small.residual_bytes("d", asked, GPUS, "0.33.0", cache_bytes=128 * MIB)[0] == 20 * MIB
