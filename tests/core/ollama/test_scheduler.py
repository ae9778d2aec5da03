"""What Ollama would do with a load, by the rules of docs/ollama.md (ids in comments are its scenarios)."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.ollama.bookkeeping import (
    OllamaResident,
    believed_free_outcomes,
    frozen_free,
    less_booked,
    live_free,
    predicted_bytes,
)
from router.core.ollama.model import ModelFacts
from router.core.ollama.options import (
    ServerSettings,
    automatic_num_ctx,
    clamped,
    merged,
    needs_reload,
    next_lower_num_ctx,
    parallel_slots,
    supports_flash_attention,
)
from router.core.ollama.runner import Gpu, LoadOptions
from router.core.ollama.scheduler import (
    automatic_batch,
    foresee_load,
    least_free_bytes,
    max_loaded,
    placement,
    preflight,
    surcharge_bytes,
    victim,
)
from router.core.units import GIB, MIB

DEFAULTS = ServerSettings()


def card(index: int = 0, total_mib: int = 24564, free_mib: int | None = None, compute: str = "8.6") -> Gpu:
    free = total_mib if free_mib is None else free_mib
    return Gpu(index, f"GPU-{index}", "card", total_mib * MIB, free * MIB, 264 * MIB, compute)


def model(
    name: str = "m", *, mib: int = 4000, family: str = "llama", caps: str = "completion", **info: object
) -> ModelFacts:
    """Return a model of 32 layers with 8 KV heads of 128: 128 KiB of predicted cache per token."""
    shape = {"block_count": 32, "embedding_length": 4096, "context_length": 131072}
    heads = {"attention.head_count": 32, "attention.head_count_kv": 8}
    metadata = {f"llama.{key}": value for key, value in {**shape, **heads, **info}.items()}
    return ModelFacts(
        name=name,
        digest=name,
        size_bytes=mib * MIB,
        family=family,
        capabilities=frozenset(caps.split()),
        weights=f"sha256-{name}",
        info={"general.architecture": "llama", **metadata},
    )


def resident(
    name: str, mib: int, *, cards: tuple[int, ...] = (0,), free_mib: int = 24300, **more: object
) -> OllamaResident:
    share = (mib // len(cards) * MIB,) * len(cards)
    held = tuple((mib + 264) * MIB if index in cards else 0 for index in range(3))
    free = (free_mib * MIB,) * len(cards)
    return OllamaResident(f"sha256-{name}", cards, share, free, held_bytes=held, **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------- context, options, reload


@pytest.mark.parametrize(
    ("totals_mib", "expected"),
    [((23551,), 4096), ((23552,), 32768), ((48127,), 32768), ((48128,), 262144), ((24064, 24064), 262144), ((), 4096)],
)
def test_tier_follows_the_sum_of_total_memory(totals_mib: tuple[int, ...], expected: int) -> None:
    """a20–a24: to the MiB, and two cards count as one."""
    gpus = [card(index, total) for index, total in enumerate(totals_mib)]
    assert automatic_num_ctx(gpus, DEFAULTS) == expected


def test_overhead_lowers_the_tier() -> None:
    """f08: 2 GiB of overhead drop a 24 GB card to 4096."""
    assert automatic_num_ctx([card()], ServerSettings(gpu_overhead_bytes=2 * GIB)) == 4096


@pytest.mark.parametrize(("num_ctx", "lower"), [(262144, 32768), (32769, 32768), (32768, 4096), (4096, None)])
def test_retry_after_running_out_of_memory_takes_the_next_lower_context(num_ctx: int, lower: int | None) -> None:
    """c04: 262144 → 32768 → 4096."""
    assert next_lower_num_ctx(num_ctx) == lower


def test_request_wins_over_modelfile_over_environment_over_tier() -> None:
    """The order of precedence of num_ctx (docs/ollama.md, "Default context")."""
    plain, tuned = model(), replace(model(), parameters={"num_ctx": 8192, "stop": "x", "num_gpu": (1, 2)})
    settings = ServerSettings(context_length=16384)
    assert merged(tuned, LoadOptions(num_ctx=2048), settings, 32768).num_ctx == 2048
    assert merged(tuned, LoadOptions(), settings, 32768).num_ctx == 8192
    assert merged(tuned, LoadOptions(), settings, 32768).num_gpu == 2
    assert merged(plain, LoadOptions(), settings, 32768).num_ctx == 16384
    assert not merged(plain, LoadOptions(), settings, 32768).num_ctx_auto
    assert merged(plain, LoadOptions(), DEFAULTS, 32768).num_ctx == 32768
    assert merged(plain, LoadOptions(), DEFAULTS, 32768).num_ctx_auto


def test_context_is_never_below_what_ollama_needs() -> None:
    """At least 4, or 2048 for a vision model."""
    assert merged(model(), LoadOptions(num_ctx=1), DEFAULTS, 4096).num_ctx == 4
    assert merged(model(caps="completion vision"), LoadOptions(num_ctx=1), DEFAULTS, 4096).num_ctx == 2048


def test_embedding_models_have_one_slot_and_a_batch_of_their_own() -> None:
    """Parallel 1, batch min(2048, num_ctx), and not automatic."""
    facts = model(caps="embedding")
    launch = merged(facts, LoadOptions(num_ctx=512), ServerSettings(num_parallel=4), 4096)
    assert (launch.num_batch, launch.num_batch_auto, launch.num_parallel) == (512, False, 1)


def test_some_families_never_run_in_parallel() -> None:
    """The family decides, not the name."""
    assert parallel_slots(model(family="qwen3next"), ServerSettings(num_parallel=4)) == 1
    assert parallel_slots(model(), ServerSettings(num_parallel=4)) == 4
    assert parallel_slots(model(caps=""), ServerSettings(num_parallel=0)) == 1


def test_context_is_clamped_to_what_the_model_was_trained_with() -> None:
    """d02; if the model does not state it, the requested context is kept."""
    assert clamped(262144, model()) == 131072
    assert clamped(262144, model(context_length=None)) == 262144


@pytest.mark.parametrize(
    ("running", "asked", "reloads"),
    [
        (LoadOptions(num_ctx=4096), LoadOptions(num_ctx=8192), True),
        (LoadOptions(num_ctx=131072), LoadOptions(num_ctx=200000), False),  # d02
        (LoadOptions(), LoadOptions(num_ctx=32768), False),  # d03
        (LoadOptions(num_ctx=8192), LoadOptions(), True),  # d03, d06
        (LoadOptions(), LoadOptions(num_batch=256), True),
        (LoadOptions(), LoadOptions(num_batch=512), False),
        (LoadOptions(num_gpu=20), LoadOptions(), False),  # d05
        (LoadOptions(), LoadOptions(num_gpu=20), True),
        (LoadOptions(), LoadOptions(num_gpu=-1), False),
        (LoadOptions(), LoadOptions(main_gpu=0), True),
        (LoadOptions(), LoadOptions(num_thread=0), False),  # d28
        (LoadOptions(), LoadOptions(num_thread=4), True),
        (LoadOptions(), LoadOptions(use_mmap=True), True),  # d28
        (LoadOptions(), LoadOptions(shift=True), False),
        (LoadOptions(), LoadOptions(shift=False), True),  # d20
    ],
)
def test_a_difference_in_effective_options_reloads(running: LoadOptions, asked: LoadOptions, reloads: bool) -> None:
    """The rules are in docs/ollama.md, "Arrival and reload"."""
    facts = model()
    started = merged(facts, running, DEFAULTS, 32768)
    started = replace(started, num_ctx=clamped(started.num_ctx, facts))
    assert needs_reload(facts, started, merged(facts, asked, DEFAULTS, 32768)) is reloads


def test_automatic_batch_on_both_sides_never_reloads() -> None:
    """It does not matter which batch Ollama chose at the load."""
    facts = model()
    launch = merged(facts, LoadOptions(), DEFAULTS, 32768)
    assert not needs_reload(facts, replace(launch, num_batch=2048), launch)


@pytest.mark.parametrize(("compute", "able"), [("8.6", True), ("7.2", False), ("5.2", False), ("", True), ("10", True)])
def test_flash_attention_needs_compute_6(compute: str, able: bool) -> None:
    """6.0 and above, except 7.2; unknown compute counts as able."""
    assert supports_flash_attention([card(compute=compute)]) is able


# ---------------------------------------------------------------- prediction, batch


def test_prediction_is_file_and_a_crude_cache() -> None:
    """128 KiB per token here; of arrays the least KV head count and the largest head count count."""
    assert predicted_bytes(model(), 8192) == 4000 * MIB + 1024 * MIB
    assert predicted_bytes(model(), 8192, 5000 * MIB) == 6024 * MIB
    hybrid = model(**{"attention.head_count_kv": [0, 8], "attention.head_count": [32, 16]})
    assert predicted_bytes(hybrid, 8192) == 4000 * MIB + 128 * MIB
    assert predicted_bytes(model(**{"attention.head_count": 0}), 8192) == 4000 * MIB
    assert predicted_bytes(model(**{"attention.head_count": None}), 1) > 4000 * MIB


@pytest.mark.parametrize(("cells", "batch"), [(4096, 512), (4097, 1024), (32768, 1024), (32769, 2048)])
def test_batch_follows_the_context_where_there_is_room(cells: int, batch: int) -> None:
    """a28: the boundaries."""
    assert automatic_batch(cells, GIB, 40 * GIB, [40 * GIB], flash_attention=True) == batch


def test_batch_steps_down_where_the_prediction_leaves_too_little() -> None:
    """60 % for 2048, 75 % for 1024, and the surcharge within 80 %."""
    free = [10 * GIB]
    assert automatic_batch(65536, int(6.1 * GIB), 10 * GIB, free, flash_attention=True) == 1024
    assert automatic_batch(65536, int(7.4 * GIB), 10 * GIB, free, flash_attention=True) == 512
    assert automatic_batch(65536, int(8.1 * GIB), 10 * GIB, free, flash_attention=True) == 512
    assert automatic_batch(65536, 0, 0, [], flash_attention=True) == 2048


def test_batch_without_flash_attention_is_small() -> None:
    """f16, f04: 512, and 256 when a card has 8 GiB or less."""
    assert automatic_batch(8192, GIB, 20 * GIB, [20 * GIB], flash_attention=False) == 512
    assert automatic_batch(8192, GIB, 8 * GIB, [8 * GIB], flash_attention=False) == 256
    assert automatic_batch(4096, GIB, 8 * GIB, [8 * GIB], flash_attention=False) == 512


def test_surcharge_by_batch() -> None:
    """2 GiB, 768 MiB, nothing."""
    assert [surcharge_bytes(batch) for batch in (2048, 1024, 512)] == [2 * GIB, 768 * MIB, 0]


# ---------------------------------------------------------------- memory that Ollama believes to be free


def test_free_memory_is_frozen_at_the_load_of_a_resident() -> None:
    """c02: memory that other processes took later is invisible."""
    gpus = [card(free_mib=1000)]
    one = resident("a", 5000)
    assert believed_free_outcomes(gpus, [one]) == {(19300 * MIB,)}


def test_memory_of_a_runner_that_left_stays_invisible() -> None:
    """b13: the younger resident was loaded beside one that was unloaded later."""
    young = resident("b", 5000, free_mib=10000)
    assert believed_free_outcomes([card()], [young]) == {(5000 * MIB,)}


def test_figures_are_live_while_a_card_has_no_runner() -> None:
    """c09: all figures are replaced, then lowered by what is booked."""
    gpus = [card(0, free_mib=3000), card(1, 12288)]
    assert believed_free_outcomes(gpus, [resident("a", 5000)]) == {(2736 * MIB, 12024 * MIB)}


def test_a_runner_alone_on_the_second_card_is_booked_as_nothing() -> None:
    """e09: its own numbering starts at 0, so card 1 reads as completely empty."""
    gpus = [card(0, free_mib=10000), card(1, free_mib=10000)]
    both = [resident("a", 5000), resident("b", 14000, cards=(1,))]
    assert {free[1] for free in believed_free_outcomes(gpus, both)} == {24564 * MIB}


def test_a_split_runner_may_have_lost_its_second_figure() -> None:
    """e14: then the second card is its total less what is booked."""
    gpus = [card(0), card(1)]
    split = resident("a", 8000, cards=(0, 1), free_mib=10000)
    assert {free[1] for free in believed_free_outcomes(gpus, [split])} == {6000 * MIB, 20564 * MIB}


def test_a_resident_that_outgrew_its_card_leaves_nothing() -> None:
    """Never below zero."""
    small = card(total_mib=4000)
    assert frozen_free([small], [resident("a", 5000, free_mib=4000)]) == (0,)
    assert less_booked([small], (100,), [resident("a", 5000)]) == (0,)


residents_st = st.lists(
    st.builds(
        lambda name, mib, cards, free: resident(name, mib, cards=cards, free_mib=free),
        st.sampled_from("abcdef"),
        st.integers(100, 12000),
        st.sampled_from([(0,), (1,), (0, 1)]),
        st.integers(5000, 24300),
    ),
    max_size=4,
    unique_by=lambda one: one.weights,
)


@given(residents_st)
def test_every_order_of_the_map_is_among_the_outcomes(found: list[OllamaResident]) -> None:
    """`believed_free_outcomes` is complete over orders."""
    gpus = [card(0, free_mib=9000), card(1, free_mib=8000)]
    outcomes = believed_free_outcomes(gpus, found)
    for order in permutations(found):
        frozen = frozen_free(gpus, order)
        known = tuple(left for left in frozen if left is not None)
        assert less_booked(gpus, known if len(known) == 2 else live_free(gpus), found) in outcomes


# ---------------------------------------------------------------- placement, pre-flight, victim


def test_placement_takes_the_emptiest_card_with_room() -> None:
    """e01: by free memory, the lowest index in a tie."""
    launch = merged(model(), LoadOptions(), DEFAULTS, 4096)
    assert placement((10 * GIB, 20 * GIB), 8 * GIB, launch, DEFAULTS) == ((1,), True)
    assert placement((20 * GIB, 20 * GIB), 8 * GIB, launch, DEFAULTS) == ((0,), True)
    assert placement((10 * GIB, 9 * GIB), 9 * GIB, launch, DEFAULTS) == ((0, 1), False)
    assert placement((20 * GIB, 20 * GIB), GIB, launch, ServerSettings(sched_spread=True)) == ((0, 1), False)
    assert placement((20 * GIB,), GIB, launch, DEFAULTS) == ((0,), False)


def test_placement_obeys_main_gpu_and_num_gpu() -> None:
    """e05: a card that does not exist is no choice; without layers there are no cards."""
    launch = merged(model(), LoadOptions(main_gpu=0), DEFAULTS, 4096)
    free = (GIB, 20 * GIB)
    assert placement(free, 8 * GIB, launch, DEFAULTS) == ((0,), True)
    assert placement(free, 8 * GIB, replace(launch, main_gpu=7), DEFAULTS) == ((0, 1), False)
    assert placement(free, 8 * GIB, replace(launch, num_gpu=0), DEFAULTS) == ((), False)


def test_preflight_evicts_above_80_percent_of_available() -> None:
    """The surcharge of the batch counts; without residents nothing is evicted."""
    launch = merged(model(mib=7000), LoadOptions(num_ctx=4096), DEFAULTS, 4096)
    facts, gpus = model(mib=7000), [card()]

    def evicts(free: int, has_residents: bool = True) -> bool:
        return preflight(facts, launch, gpus, (free,), DEFAULTS, has_residents=has_residents).evicts

    need = 7512 * MIB
    assert not evicts(need * 100 // 80 + 2)
    assert evicts(need * 100 // 80 - 2)
    assert not evicts(need, has_residents=False)


def test_explicit_partial_offload_skips_the_preflight() -> None:
    """b15, b16: num_gpu from 1 to block_count, and 0; 999 does not (d04)."""
    facts = model(mib=20000)
    for num_gpu, evicts in ((10, False), (32, False), (0, False), (33, True), (999, True)):
        launch = merged(facts, LoadOptions(num_ctx=4096, num_gpu=num_gpu), DEFAULTS, 4096)
        assert preflight(facts, launch, [card()], (GIB,), DEFAULTS, has_residents=True).evicts is evicts


def test_embedding_models_carry_no_surcharge() -> None:
    """Their large batch costs nothing in the prediction."""
    facts = model(caps="embedding", mib=300)
    launch = merged(facts, LoadOptions(num_ctx=2048), DEFAULTS, 4096)
    check = preflight(facts, launch, [card()], (800 * MIB,), DEFAULTS, has_residents=True)
    assert check.num_batch == 2048
    assert not check.evicts


def test_flash_attention_setting_overrides_the_cards() -> None:
    """on and off as set; auto asks the cards."""
    facts = model()
    launch = merged(facts, LoadOptions(num_ctx=32768), DEFAULTS, 4096)
    for setting, compute, batch in (
        ("off", "8.6", 512),
        ("on", "5.2", 1024),
        ("auto", "5.2", 512),
        ("auto", "8.6", 1024),
    ):
        settings = ServerSettings(flash_attention=setting)  # type: ignore[arg-type]
        check = preflight(facts, launch, [card(compute=compute)], (24 * GIB,), settings, has_residents=False)
        assert check.num_batch == batch


def test_victim_is_idle_then_short_lived_then_first_by_digest() -> None:
    """b05, b06, b07: neither LRU nor size."""
    busy = resident("a", 100, keep_alive_s=1.0, is_idle=False)
    long, short, same = resident("b", 100), resident("d", 100, keep_alive_s=60.0), resident("c", 100, keep_alive_s=60.0)
    assert victim([busy, long, short, same]) is same
    assert victim([busy, long]) is long
    assert victim([busy]) is busy


def test_three_models_per_card_unless_set() -> None:
    """OLLAMA_MAX_LOADED_MODELS, and without cards as with one."""
    assert [max_loaded(count, DEFAULTS) for count in (0, 1, 2)] == [3, 3, 6]
    assert max_loaded(2, ServerSettings(max_loaded_models=1)) == 1


# ---------------------------------------------------------------- foresight


def test_nothing_is_evicted_if_there_is_room() -> None:
    """There is one certain outcome."""
    seen = foresee_load(model("n"), LoadOptions(num_ctx=8192), [card(free_mib=19000)], [resident("a", 5000)], DEFAULTS)
    assert (seen.evicts, seen.cards, seen.num_ctx, seen.num_parallel) == ((), (0,), 8192, 1)
    assert seen.num_batch == 1024


def test_residents_are_evicted_one_by_one_until_it_fits() -> None:
    """b17: a model that never fits evicts all others first."""
    residents = [resident("a", 5000), resident("b", 5000, free_mib=19000)]
    seen = foresee_load(model("n", mib=40000), LoadOptions(num_ctx=4096), [card(free_mib=13000)], residents, DEFAULTS)
    assert seen.evicts == ("sha256-a", "sha256-b")
    assert seen.cards == (0,)


def test_map_order_makes_several_outcomes() -> None:
    """b13: if the older resident is read there is room; if the younger is, both are evicted, one in vain."""
    residents = [resident("a", 2000), resident("b", 2000, free_mib=9000)]
    seen = foresee_load(model("n", mib=8000), LoadOptions(num_ctx=4096), [card(free_mib=20000)], residents, DEFAULTS)
    assert {outcome.evicts for outcome in seen.outcomes} == {(), ("sha256-a", "sha256-b")}
    assert seen.evicts == ("sha256-a", "sha256-b")


def test_cards_are_empty_if_outcomes_differ() -> None:
    """Two placements are possible here, depending on chance."""
    gpus = [card(0, free_mib=19000), card(1, free_mib=16000)]
    split = resident("s", 8000, cards=(0, 1), free_mib=16000)
    seen = foresee_load(model("n", mib=5000), LoadOptions(num_ctx=4096), gpus, [split], DEFAULTS)
    assert len({outcome.cards for outcome in seen.outcomes}) == 2
    assert seen.cards == ()


def test_a_reload_evicts_the_models_own_runner() -> None:
    """b24: it is evicted first; then the others are checked."""
    own = resident("n", 5000)
    seen = foresee_load(model("n"), LoadOptions(num_ctx=4096), [card(free_mib=19000)], [own], DEFAULTS)
    assert seen.evicts == ("sha256-n",)


def test_the_limit_of_models_evicts_as_well() -> None:
    """f06: OLLAMA_MAX_LOADED_MODELS=1."""
    settings = ServerSettings(max_loaded_models=1)
    seen = foresee_load(model("n"), LoadOptions(num_ctx=4096), [card()], [resident("a", 100)], settings)
    assert [outcome.evicts for outcome in seen.outcomes] == [("sha256-a",)]


@pytest.mark.parametrize("num_gpu", [0, 1])
def test_a_model_that_is_not_to_be_wholly_on_the_gpu_evicts_nobody_for_room(num_gpu: int) -> None:
    """Ollama asks for no free memory then: what does not fit is on the CPU anyway."""
    whole, partial = (
        merged(model(), LoadOptions(num_ctx=4096, num_gpu=count), DEFAULTS, 0) for count in (None, num_gpu)
    )
    assert least_free_bytes(model(), whole) > 0
    assert least_free_bytes(model(), partial) == 0
