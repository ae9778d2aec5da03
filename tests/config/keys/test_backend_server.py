"""`backends.*.server`: how Ollama is set up, as far as that changes memory.

The simulated Ollama has the setting in each test; the router's configuration has it or lacks it. A router that knows it
foresees what happens. One that does not learns it by a load that spills, or refuses what would have fitted.
"""

import asyncio
import json

import pytest

from router.core.ollama.options import ServerSettings
from router.core.units import MIB
from tests.config.keys.play import (
    ALONE,
    MIDDLE,
    SMALL,
    chat,
    compare,
    compare_small,
    contexts,
    get,
    hello,
    seen,
    state,
)

SERVER = "backends.local.server"


async def small_at_16k(one):
    """The small model at 16384 tokens, which takes about 5200 MiB as a rule: the status, and the loads that it cost."""
    return (await one.ask(hello(SMALL, options={"num_ctx": 16384}))).status, one.loads


SPILLS, FORESEES, REFUSES, SERVES = (503, [SMALL]), (503, []), (503, []), (200, [SMALL])


@pytest.mark.key("backends.*.server.auto")
def test_with_auto_a_setting_that_one_load_has_shown_counts_for_the_next_model():
    """Four slots that nobody told: the first model spills and is refused, the second need not be tried."""

    async def story(one):
        for model in (MIDDLE, SMALL):
            assert (await one.ask(hello(model, options={"num_ctx": 16384}))).status == 503
        return one.loads, [note for note in (await state(one))["notes"] if "OLLAMA_NUM_PARALLEL=4" in note]

    settings = ServerSettings(num_parallel=4)
    by_config, by_loads = compare(story, f"{SERVER}.auto", [False, True], cards=(9500,), settings=settings)
    assert (by_config[0], by_loads[0]) == ([MIDDLE, SMALL], [MIDDLE])
    assert "server.auto is false" in by_config[1][0]
    assert "planned with that" in by_loads[1][0]


@pytest.mark.key("backends.*.server.num_parallel")
def test_a_router_that_knows_num_parallel_counts_a_cache_for_each_slot():
    """Four slots take twice the memory."""
    found = compare_small(
        small_at_16k, f"{SERVER}.num_parallel", [1, 4], cards=(8000,), settings=ServerSettings(num_parallel=4)
    )
    assert found == [SPILLS, FORESEES]


@pytest.mark.key("backends.*.server.kv_type")
def test_a_router_that_knows_kv_type_counts_the_cache_in_it():
    """A cache in q8_0 takes half of what it takes in f16."""
    found = compare_small(
        small_at_16k, f"{SERVER}.kv_type", ["f16", "q8_0"], cards=(4800,), settings=ServerSettings(kv_type="q8_0")
    )
    assert found == [REFUSES, SERVES]


@pytest.mark.key("backends.*.server.flash_attention")
def test_a_router_that_knows_flash_attention_is_off_counts_its_larger_buffers():
    """Some 700 MiB more."""
    settings = ServerSettings(flash_attention="off")
    found = compare_small(small_at_16k, f"{SERVER}.flash_attention", ["auto", "off"], cards=(5600,), settings=settings)
    assert found == [SPILLS, FORESEES]


@pytest.mark.key("backends.*.server.fit_target_mib")
def test_a_router_that_knows_fit_target_mib_counts_on_that_margin():
    """Not on 1024 MiB: with a larger one the load would spill, with a smaller one more fits."""
    key = f"{SERVER}.fit_target_mib"
    wide = compare_small(
        small_at_16k, key, [None, 2048], cards=(5600,), settings=ServerSettings(fit_target_bytes=2048 * MIB)
    )
    narrow = compare_small(
        small_at_16k, key, [None, 256], cards=(4800,), settings=ServerSettings(fit_target_bytes=256 * MIB)
    )
    assert (wide, narrow) == ([SPILLS, FORESEES], [REFUSES, SERVES])


@pytest.mark.key("backends.*.server.gpu_overhead_mib")
def test_a_router_that_knows_gpu_overhead_mib_expects_a_smaller_automatic_context():
    """With 2 GB less Ollama no longer counts this card among those of 24 GB, and its automatic context is 4096."""

    async def story(one):
        await one.ask(hello(SMALL))
        return contexts(one)

    settings = ServerSettings(gpu_overhead_bytes=2048 * MIB)
    found = compare_small(story, f"{SERVER}.gpu_overhead_mib", [0, 2048], settings=settings)
    assert found == [[32768], [8192]]


@pytest.mark.key("backends.*.server.sched_spread")
def test_a_router_that_knows_sched_spread_expects_a_model_on_all_cards():
    """Where a request can name no card: while it loads, memory is reserved on one of two cards, or on both."""

    async def story(one):
        asked = asyncio.create_task(one.ask(chat(MIDDLE), "/v1/chat/completions"))
        await asyncio.sleep(0.2)
        page = (await get(one.router.admin_url, "/metrics")).body.decode()
        assert (await asked).status == 200
        rows = [line for line in page.splitlines() if line.startswith("ollama_router_vram_reserved_bytes{")]
        return sum(float(row.split()[-1]) > 0 for row in rows)

    config = {**ALONE, "defaults.derived_tags": False}
    settings = ServerSettings(sched_spread=True)
    cards = (16000, 16000)
    assert compare(story, f"{SERVER}.sched_spread", [False, True], config, cards=cards, settings=settings) == [1, 2]


@pytest.mark.key("backends.*.server.max_loaded_models")
def test_a_router_that_knows_max_loaded_models_makes_room_itself():
    """Else Ollama unloads a model behind its back, of which there is room for both."""

    async def story(one):
        for model in (SMALL, MIDDLE):
            assert (await one.ask(hello(model))).status == 200
        bodies = [json.loads(found.body) for found in seen(one, "/api/generate")]
        return [body["model"] for body in bodies if body.get("keep_alive") == 0]

    found = compare(story, f"{SERVER}.max_loaded_models", [None, 1], settings=ServerSettings(max_loaded_models=1))
    assert found == [[], [SMALL]]


@pytest.mark.key("backends.*.server.context_length")
def test_a_router_that_knows_context_length_counts_a_request_without_a_context_at_it():
    """One on `/v1` without derived tags runs at Ollama's own context, here a larger one than by the card."""

    async def story(one):
        return (await one.ask(chat(SMALL), "/v1/chat/completions")).status, one.loads

    config = {**ALONE, "defaults.derived_tags": False}
    settings = ServerSettings(context_length=131072)
    found = compare_small(story, f"{SERVER}.context_length", [None, 131072], config, cards=(10000,), settings=settings)
    assert found == [SPILLS, FORESEES]
