"""Look-ups of names and changes of manifests are kept apart, on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from ollama_simulator.clock import run_virtual
from ollama_simulator.models.library import real_library
from ollama_simulator.server import SimConfig, running_simulator
from router.adapters.manifests import LOOK_UP_S, Manifests
from router.adapters.ollama import OllamaClient
from router.core.ollama.names import ModelName
from router.core.ollama.runner import LoadOptions
from router.errors import ModelNotFound

MODEL = "llama3.2:3b"
OPTIONS = LoadOptions(num_ctx=4096, num_batch=512)


async def do(spans, block, name, takes_s):
    """Spend some time in a block; note when it began and ended."""
    now = asyncio.get_running_loop().time
    async with block:
        began_s = now()
        await asyncio.sleep(takes_s)
    spans[name] = (began_s, now())


def spans_of(*blocks):
    """Run blocks, each begun just after the one before it; return their times from the start."""

    async def run():
        manifests, spans, tasks = Manifests(), {}, []
        start_s = asyncio.get_running_loop().time()
        for name, kind, takes_s in blocks:
            tasks.append(asyncio.create_task(do(spans, getattr(manifests, kind)(), name, takes_s)))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        return {name: (began_s - start_s, ended_s - start_s) for name, (began_s, ended_s) in spans.items()}

    return run_virtual(run())


def test_changes_are_made_one_after_another():
    """Ollama lists manifests at each of them."""
    found = spans_of(("a", "changing", 0.2), ("b", "changing", 0.2))
    assert found["b"][0] >= found["a"][1]


def test_loads_do_not_wait_for_each_other():
    """Nor does one wait for another's look-up."""
    found = spans_of(("a", "looking_up", 5), ("b", "looking_up", 5))
    assert found["b"][0] < 0.01


def test_a_change_waits_for_the_look_up_of_a_load_and_not_for_the_load():
    """A load that has failed by then is not waited for."""
    found = spans_of(("load", "looking_up", 60), ("change", "changing", 0.1))
    assert LOOK_UP_S <= found["change"][0] < LOOK_UP_S + 0.1
    found = spans_of(("load", "looking_up", 0.1), ("change", "changing", 0.1))
    assert 0.1 <= found["change"][0] < 0.2


def test_a_load_waits_for_a_change_under_way():
    """It takes milliseconds."""
    found = spans_of(("change", "changing", 0.3), ("load", "looking_up", 1))
    assert found["load"][0] >= found["change"][1]


def test_a_change_that_hangs_holds_a_load_up_for_a_moment_only():
    """And leaves nothing behind that later changes would wait for."""
    found = spans_of(("change", "changing", 100), ("load", "looking_up", 1), ("later", "changing", 0.1))
    assert found["load"][0] == pytest.approx(LOOK_UP_S, abs=0.01)
    assert found["later"][0] == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("call", ["load", "unload", "tags", "create_derived"])
def test_what_fails_because_a_manifest_vanishes_is_asked_once_more(call):
    """Somebody else deletes a model during the listing."""

    async def run():
        config = SimConfig(library=real_library([MODEL, "mistral:7b"]))
        async with running_simulator(config) as sim:
            sim.faults.add("vanish", delay_s=0.02)
            client = OllamaClient(sim.url)
            asyncio.get_running_loop().call_later(0.01, sim.library.remove, ModelName.parse("mistral:7b"))
            calls = {
                "load": lambda: client.load(MODEL, OPTIONS, 60.0),
                "unload": lambda: client.unload(MODEL),
                "tags": client.tags,
                "create_derived": lambda: client.create_derived("ollama-router-derived/x:y", MODEL, {"num_ctx": 4096}),
            }
            await calls[call]()
            await client.aclose()
            return [seen.status for seen in sim.seen]

    first, second = run_virtual(run())
    assert (first in (400, 404, 500), second) == (True, 200)


def test_a_model_that_is_really_gone_is_asked_for_twice_at_most():
    """Then the error is Ollama's."""

    async def run():
        async with running_simulator(SimConfig(models=(MODEL,))) as sim:
            client = OllamaClient(sim.url)
            with pytest.raises(ModelNotFound):
                await client.load("gone:1b", OPTIONS, 60.0)
            await client.aclose()
            return len(sim.seen)

    assert run_virtual(run()) == 2


def test_a_list_that_ollama_refuses_is_asked_for_once_more():
    """Whatever its text."""

    async def run():
        async with running_simulator(SimConfig(library=real_library([MODEL]))) as sim:
            sim.faults.add("status", status=500, route="/api/tags", body='{"error":"open manifest: no such file"}')
            client = OllamaClient(sim.url)
            rows = await client.tags()
            await client.aclose()
            return [row["name"] for row in rows], [seen.status for seen in sim.seen]

    assert run_virtual(run()) == ([MODEL], [500, 200])
