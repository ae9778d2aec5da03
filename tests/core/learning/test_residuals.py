"""What loads teach: residuals, error bars, bans, hidden settings, a change of version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.learning.estimate import LEAST_SAFETY_BYTES
from router.core.learning.observation import in_order
from router.core.learning.residuals import BAN_S, Learned, Observation
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


def test_what_a_load_took_less_on_other_cards_is_not_taken_off_on_these() -> None:
    """Two small driver contexts, say, where there is one now; what it took more counts."""
    both = {"gpu_names": ("RTX 3090", "RTX 3060")}
    less, more = Learned.of([load(residual_mib=-900, **both)]), Learned.of([load(residual_mib=300, **both)])
    expected = (0, None, "learned on other cards, which may differ")
    assert less.residual_bytes("a", OPTIONS, GPUS, "0.33.0") == expected
    assert less.residual_bytes("a", OPTIONS, both["gpu_names"], "0.33.0")[0] == -900 * MIB
    assert more.residual_bytes("a", OPTIONS, GPUS, "0.33.0")[0] == 300 * MIB


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


def test_a_constant_on_which_two_models_agree_counts_for_others() -> None:
    """Only if it adds."""
    more = Learned.of([load("a", 900), load("b", 910), load("c", 5)])
    assert more.drift() == ("2 models take 905 MiB more than computed, for no known reason",)
    assert more.residual_bytes("new", OPTIONS, GPUS, "0.33.0") == (905 * MIB, None, more.drift()[0])
    assert more.residual_bytes("new", OPTIONS, GPUS, "0.34.0") == (0, None, "")
    less = Learned.of([load("a", -700), load("b", -700)])
    assert less.residual_bytes("new", OPTIONS, GPUS, "0.33.0")[0] == 0
    assert Learned.of([load("a", 700)]).residual_bytes("new", OPTIONS, GPUS, "0.33.0")[0] == 0


def test_small_residuals_are_not_drift() -> None:
    """The formula explains them well enough; residuals that agree on nothing are not explained at all."""
    assert Learned.of([load("a", 100), spill("b")]).drift() == ()
    assert Learned.of([load("a", 500), load("b", 9000)]).drift() == ()


def test_a_load_without_a_prediction_teaches_nothing_of_the_size() -> None:
    """It was tried where free memory could not be read; once it can, the formula counts."""
    tried = spill(predicted_bytes=0, measured_bytes=0, gpu_names=())
    assert Learned.of([tried]).residual_bytes("a", OPTIONS, GPUS, "0.33.0") == (0, None, "")


def test_a_load_from_the_future_is_neither_the_newest_nor_recent_for_years_j10() -> None:
    """The clock was ahead when it was observed: what came after it outweighs it, and it grows old from now on."""
    ahead = spill(at_s=1e9, ollama_version="0.32.0")
    after = load(at_s=2000.0)
    learned = Learned.of(in_order([ahead, after], 2500.0))
    assert learned.version == "0.33.0"
    assert learned.residual_bytes("a", OPTIONS, GPUS, "0.33.0", now_s=2500.0)[0] == 0
    alone = Learned.of(in_order([ahead], 2500.0))
    assert alone.banned("a", OPTIONS, 20 * GIB, 2501.0)
    assert not alone.banned("a", OPTIONS, 20 * GIB, 2500.0 + BAN_S)
    assert alone.residual_bytes("a", OPTIONS, GPUS, "0.32.0", now_s=2500.0 + BAN_S) == (0, None, "")


def test_loads_in_order_stay_as_they_are() -> None:
    seen = [load(at_s=1.0), load("b", at_s=1.0), spill(at_s=3.0)]
    assert all(one is other for one, other in zip(in_order(seen, 3.0), seen, strict=True))
