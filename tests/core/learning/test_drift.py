"""What loads show of how the server is set up: the formula's figures for each setup against what was taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.learning.drift import recognise
from router.core.learning.residuals import Learned
from router.core.learning.setup import Setup, key_of, likely_setups
from router.core.memory.options import MemoryOptions
from router.core.ollama.options import ServerSettings
from router.core.units import GIB, MIB
from tests.core.learning.test_residuals import GPUS, load

CONFIGURED = ServerSettings()
KV_SHARE = {"f16": 1.0, "q8_0": 0.53125, "q4_0": 0.28125}


def predicted_bytes(cache_mib: float, setup: Setup) -> int:
    """A model with weights of 10 GiB, whose KQ matrix without flash attention takes 5 % of them."""
    cache = cache_mib * setup.num_parallel * KV_SHARE[setup.kv_type]
    return 10 * GIB + int(cache * MIB) + (0 if setup.flash_attention else GIB // 2)


def seen(name, cache_mib, really, *, at_s=0.0, noise_mib=0, assumed=None, **changes):
    """A whole load on a server that is really set up as `really`."""
    assumed = assumed or Setup()
    took = predicted_bytes(cache_mib, really) + noise_mib * MIB
    alternatives = {key_of(one): predicted_bytes(cache_mib, one) for one in likely_setups(assumed)}
    return replace(
        load(name), measured_bytes=took, predicted_bytes=predicted_bytes(cache_mib, assumed), at_s=at_s,
        num_parallel=assumed.num_parallel, kv_type=assumed.kv_type, alternatives=alternatives, **changes,
    )  # fmt: skip


def spilled(name, cache_mib, really, **changes):
    """The same on a card that had 18 GiB free: the rest is in main memory, by ps."""
    took = predicted_bytes(cache_mib, really)
    on_card = min(took, 17 * GIB)
    sizes = {"size_bytes": took, "size_vram_bytes": on_card, "free_before_bytes": 18 * GIB, "measured_bytes": on_card}
    return replace(seen(name, cache_mib, really), spilled=True, **{**sizes, **changes})


SETUPS = [
    Setup(num_parallel=2),
    Setup(num_parallel=4),
    Setup(num_parallel=8),
    Setup(kv_type="q8_0"),
    Setup(kv_type="q4_0"),
    Setup(4, "q8_0"),
    Setup(flash_attention=False),
    Setup(4, flash_attention=False),
]


@pytest.mark.parametrize("setup", SETUPS, ids=key_of)
def test_a_setup_is_recognised_from_loads_of_different_models(setup):
    """Whatever their caches, and with the noise of readings."""
    loads = [seen("a", 4096, setup, noise_mib=60), seen("b", 1500, setup, noise_mib=-60), seen("c", 2900, setup)]
    loads.append(seen("d", 2000, setup))
    found = recognise(loads, CONFIGURED)
    assert found is not None
    assert found.setup == setup


@pytest.mark.parametrize("setup", SETUPS, ids=key_of)
def test_what_was_recognised_holds_when_loads_are_predicted_with_it(setup):
    """Their residual is zero then, which does not show the configured setup."""
    loads = [seen(name, cache, setup, assumed=setup) for name, cache in (("a", 4096), ("b", 1500), ("c", 2900))]
    found = recognise(loads, CONFIGURED)
    assert found is not None
    assert found.setup == setup


def test_a_smaller_driver_context_than_assumed_is_not_taken_for_another_setup():
    """What Ollama has booked shows that the caches are as configured, whatever the cards' contexts take."""
    contexts = {"gpu_names": ("RTX A5000", "RTX 3060"), "context_bytes": 914 * MIB}
    loads = [
        seen(name, cache_mib, Setup(), noise_mib=-522, size_vram_bytes=predicted_bytes(cache_mib, Setup()) - 914 * MIB)
        for name, cache_mib in (("a", 3300), ("b", 3500), ("c", 3000), ("d", 3700))
    ]
    assert recognise(loads, CONFIGURED) is not None  # by the probe alone
    assert recognise([replace(one, **contexts) for one in loads], CONFIGURED) is None


@pytest.mark.parametrize("setup", SETUPS, ids=key_of)
def test_a_setup_is_recognised_on_cards_with_smaller_driver_contexts_than_assumed(setup):
    """What Ollama has booked shows it, too."""
    loads = [
        seen(
            name, cache_mib, setup, noise_mib=-330, gpu_names=("RTX 3060",), context_bytes=457 * MIB,
            size_vram_bytes=predicted_bytes(cache_mib, setup) - 457 * MIB,
        )
        for name, cache_mib in (("a", 4096), ("b", 1500), ("c", 2900), ("d", 2000))
    ]  # fmt: skip
    found = recognise(loads, CONFIGURED)
    assert found is not None
    assert found.setup == setup


def test_what_ollama_lists_counts_only_where_it_lacks_no_more_than_contexts():
    """A buffer that it has lost is more: then the probe's figure tells how the server is set up."""
    lost = {"context_bytes": 457 * MIB, "gpu_names": ("RTX A5000",)}
    loads = [
        seen(name, cache_mib, Setup(), size_vram_bytes=predicted_bytes(cache_mib, Setup()) - (457 + 654) * MIB, **lost)
        for name, cache_mib in (("a", 1400), ("b", 1300), ("c", 1500))
    ]
    assert recognise(loads, CONFIGURED) is None


def test_loads_that_the_configured_setup_explains_show_nothing():
    """Nor do those whose readings are odd, or that were made before setups were compared."""
    plain = [seen("a", 4096, Setup(), noise_mib=90), seen("b", 1500, Setup(), noise_mib=-90)]
    assert recognise(plain, CONFIGURED) is None
    assert recognise([load("a", 9000), load("b", -700)], CONFIGURED) is None
    assert recognise([replace(seen("a", 4096, Setup(4)), measured_bytes=0)], CONFIGURED) is None


def test_one_spilled_load_shows_slots_that_nobody_told():
    """So the second model does not spill as well; a setup that takes less needs two models."""
    found = recognise([spilled("a", 4096, Setup(4))], CONFIGURED)
    assert found is not None
    assert (found.setup, found.models) == (Setup(4), 1)
    assert recognise([seen("a", 4096, Setup(kv_type="q8_0"))], CONFIGURED) is None
    unseen = spilled("a", 4096, Setup(4), measured_bytes=0)
    assert recognise([unseen], CONFIGURED) is None


def test_a_configured_setup_that_loads_contradict_is_outweighed():
    """And named as the change of environment that it would be."""
    loads = [seen(name, cache, Setup(), assumed=Setup(4)) for name, cache in (("a", 4096), ("b", 1500))]
    found = recognise(loads, ServerSettings(num_parallel=4))
    assert found is not None
    assert found.setup == Setup()
    assert found.notes == ("2 models took what they take with OLLAMA_NUM_PARALLEL=1",)


def test_a_change_of_the_server_is_noticed_after_two_loads():
    """Newer loads count more, but a single odd one overthrows nothing."""
    old = [seen(f"old{at}", 1000 + 400 * at, Setup(4)) for at in range(5)]
    new = [seen("new", 3000, Setup(), assumed=Setup(4)), seen("newer", 2000, Setup(), assumed=Setup(4))]
    first, second = recognise([new[0], *old], CONFIGURED), recognise([*reversed(new), *old], CONFIGURED)
    assert first is not None
    assert first.setup == Setup(4)
    assert second is None


def test_past_loads_are_compared_with_the_formula_for_the_recognised_setup():
    """So a model that was loaded needs no correction, and another one has none."""
    learned = Learned.of([seen("a", 4096, Setup(4), at_s=1.0), seen("b", 1500, Setup(4), at_s=2.0)])
    assert learned.applied_to(CONFIGURED).num_parallel == 4
    asked = MemoryOptions(8192, num_parallel=4)
    assert learned.residual_bytes("a", asked, GPUS, "0.33.0")[0] == 0
    assert learned.residual_bytes("new", asked, GPUS, "0.33.0") == (0, None, "")
    (note,) = learned.drift()
    assert note.startswith("2 models took what they take with OLLAMA_NUM_PARALLEL=4: planned with that")


def test_without_auto_what_loads_show_is_noted_and_not_planned_with():
    """Each model has its own correction then."""
    loads = [seen("a", 4096, Setup(4), at_s=1.0), seen("b", 1500, Setup(4), at_s=2.0)]
    learned = Learned.of(loads, CONFIGURED, is_auto=False)
    assert learned.applied_to(CONFIGURED) == CONFIGURED
    assert "server.auto is false" in learned.drift()[0]
    assert learned.residual_bytes("a", MemoryOptions(8192), GPUS, "0.33.0")[0] == 3 * 4096 * MIB


def test_a_model_with_one_slot_under_each_setup_stays_at_one():
    """An embedder's load is the same whatever OLLAMA_NUM_PARALLEL is."""
    one_slot = replace(seen("a", 0, Setup()), is_one_slot=True, at_s=3.0)
    learned = Learned.of([one_slot, seen("b", 4096, Setup(4), at_s=1.0), seen("c", 1500, Setup(4), at_s=2.0)])
    assert learned.applied_to(CONFIGURED).num_parallel == 4
    assert learned.by_weights["a"][0].num_parallel == 1


def left_free(name, left_mib, *, is_spilled=True, gpu_names=GPUS):
    """A load of 13 GiB, of which as much went to the card as leaves `left_mib` free."""
    free = 16 * GIB
    on_card = free - left_mib * MIB if is_spilled else 13 * GIB
    free = free if is_spilled else 13 * GIB + left_mib * MIB
    whole = replace(load(name, 3 * 1024), predicted_bytes=13 * GIB, free_before_bytes=free, gpu_names=gpu_names)
    return replace(whole, spilled=is_spilled, measured_bytes=on_card, size_bytes=13 * GIB, size_vram_bytes=on_card)


def margin_of(*loads):
    """The fit target that these loads show, the newest last."""
    at = [replace(one, at_s=one.at_s + number) for number, one in enumerate(loads)]
    found = recognise((), CONFIGURED, at[::-1])
    return None if found is None else found.margin_bytes // MIB


def test_loads_that_spill_with_much_left_free_show_a_larger_fit_target():
    """The first may have spilled for another reason. What a whole load left free since then bounds it."""
    spills, near = [left_free("a", 4200), left_free("a", 4500)], left_free("c", 3600, is_spilled=False)
    assert margin_of(spills[0]) is None
    assert margin_of(*spills) == 4096
    assert margin_of(*spills, near) == 3584
    assert margin_of(near, *spills) == 4096
    assert margin_of(*spills, left_free("a", 5000, is_spilled=False)) == 4096
    assert margin_of(*spills, replace(near, measured_bytes=0)) == 4096
    learned = Learned.of([*spills, left_free("a", 5000, is_spilled=False)])
    assert learned.applied_to(CONFIGURED).fit_target_bytes == 4096 * MIB
    assert "LLAMA_ARG_FIT_TARGET=4096" in learned.drift()[0]


def test_a_fit_target_is_tried_again_after_a_day():
    """Once it is known, nothing spills any more that could show it."""
    spills = [left_free("a", 4200), left_free("b", 4500)]
    assert margin_of(*spills, replace(load("c"), at_s=spills[0].at_s + 86400)) is None


def test_what_llama_cpp_leaves_free_by_itself_shows_no_fit_target():
    """A layer and its cache; nor more than half of the card, loads over two, or those that nothing explains."""
    assert margin_of(left_free("a", 2000), left_free("b", 2200)) is None
    assert margin_of(left_free("a", 9000), left_free("b", 9500)) is None
    both = ("x", "y")
    assert margin_of(left_free("a", 4200, gpu_names=both), left_free("b", 4500, gpu_names=both)) is None
    assert margin_of(*(replace(left_free(name, 4200), predicted_bytes=9 * GIB) for name in ("a", "b"))) is None


def test_a_load_that_is_a_little_off_shows_no_other_setup():
    """Most of all one that spilled: it has buffers on both sides."""
    off = [replace(spilled(name, 4096, Setup()), size_bytes=14 * GIB + 400 * MIB) for name in ("a", "b", "c")]
    assert all(one.shown_residual_bytes == 400 * MIB for one in off)
    assert recognise(off, CONFIGURED) is None


def test_smaller_contexts_on_two_cards_show_no_other_setup():
    """Observed: 193 MiB less on each were taken for three slots with a cache of q4_0, and the next load spilled."""
    models = {"a": 1600, "b": 2400, "c": 2048}
    loads = [seen(name, cache, Setup(), noise_mib=-386, gpu_names=("A", "B")) for name, cache in models.items()]
    assert recognise(loads, CONFIGURED) is None
    on_one = [replace(one, gpu_names=("A",)) for one in loads]
    assert recognise(on_one, CONFIGURED) is not None


def test_a_setup_that_takes_less_is_confirmed_first_after_a_restart_and_one_that_takes_more_is_tried_again_in_time():
    """Ollama may have other settings now; and nothing keeps a model out of an empty card for ever."""
    less = [seen("a", 4096, Setup(kv_type="q8_0"), at_s=1.0), seen("b", 1500, Setup(kv_type="q8_0"), at_s=2.0)]
    confirmed = [*less, seen("a", 4096, Setup(kv_type="q8_0"), at_s=9.0)]
    kinds = [Learned.of(loads, 5.0).applied_to(CONFIGURED, 10.0).kv_type for loads in (less, confirmed)]
    assert kinds == ["f16", "q8_0"]
    more = Learned.of([seen("a", 4096, Setup(4), at_s=1.0)], 5.0)
    slots = [more.applied_to(CONFIGURED, now_s).num_parallel for now_s in (10.0, 86390.0, 86401.0)]
    assert slots == [4, 4, 1]
