"""What a node tells its fronts of itself: its state, once and as a stream, and its models."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest

from ollama_simulator.clock import run_virtual
from router.core.nodes.view import NodeView
from router.core.units import MIB
from tests.config.keys.play import ALONE, BIG, MIDDLE, OTHER, SMALL, explained, hello, send
from tests.fakes import request_bytes
from tests.routing.nodes.stage import KEY, call_for, headers_of, noded, play


@asynccontextmanager
async def stream(node):
    """Open the stream of a node, and yield what returns its next view; None at its end."""
    raw = await node.connected()
    await raw.send(request_bytes("GET", "/router/node/events", headers=headers_of(None)))
    status, headers = await raw.head()
    assert (status, headers["content-type"], headers["transfer-encoding"]) == (200, "text/event-stream", "chunked")

    async def following():
        size = int(await raw.reader.readline() or b"0", 16)
        piece = await raw.reader.readexactly(size + 2)
        return NodeView.from_json(piece.strip().removeprefix(b"data: ")) if size else None

    try:
        yield following
    finally:
        raw.close()
        await raw.writer.wait_closed()


def now():
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("target", ["/router/node", "/router/node/catalog", "/router/node/events"])
@pytest.mark.parametrize("key", [None, "another", "", KEY.upper()])
def test_only_fronts_are_told_n6(target, key):
    async def story(node):
        reply = await node.get(target, key=key)
        return reply.status, KEY.encode() in reply.body

    assert play(story) == (401, False)


@pytest.mark.parametrize("target", ["/router/node", "/router/node/catalog", "/router/node/events"])
def test_a_router_that_is_not_a_node_has_no_such_path(target):
    async def story(node):
        return (await node.get(target)).status

    assert play(story, is_node=False) == 404


def test_a_node_has_no_other_paths_and_methods_of_the_kind():
    async def story(node):
        return [(await node.get(path)).status for path in ("/router/node/", "/router/nodes", "/router/state")]

    assert play(story) == [404] * 3


def test_the_state_names_cards_and_what_is_loaded():
    async def story(node):
        before = await node.view()
        assert (before.name, before.is_up, before.draining, before.memory) == ("gpu-a", True, False, "probed")
        assert [gpu.total_bytes // MIB for gpu in before.gpus] == [24564]
        assert (before.residents, before.loading, before.wait_s) == ((), (), 0.0)
        assert before.ollama
        working = asyncio.create_task(node.ask(call_for(SMALL), hello(SMALL, tokens=300)))
        await asyncio.sleep(2)
        during = await node.view()
        (loaded,) = during.residents
        assert (loaded.is_full, loaded.in_flight, loaded.idle_s, loaded.waiting) == (True, 1, 0.0, 0)
        assert loaded.context >= 2048
        assert sum(loaded.held_bytes) > 2 << 30
        assert loaded.weights in {model.weights for model in (await node.catalog()).models}
        assert during.gpus[0].free_bytes < before.gpus[0].free_bytes - (2 << 30)
        assert during.seq > before.seq
        await working
        await asyncio.sleep(5)
        (idle,) = (await node.view()).residents
        return idle.in_flight, 4 < idle.idle_s < 8

    assert play(story) == (0, True)


def test_the_state_names_what_is_being_loaded_and_what_waits():
    async def story(node):
        asked = asyncio.create_task(node.ask(call_for(BIG), hello(BIG)))
        await asyncio.sleep(0.5)
        view = await node.view()
        (loading,) = view.loading
        weights = {model.name: model.weights for model in (await node.catalog()).models}
        assert loading.weights == weights[BIG]
        assert loading.eta_s > 0
        assert view.wait_s > 0
        return (await asked).status

    assert play(story) == 200


def test_a_full_resident_says_how_long_one_more_would_wait():
    async def story(node):
        asked = [asyncio.create_task(node.ask(call_for(SMALL), hello(SMALL, tokens=300))) for _ in range(8)]
        await asyncio.sleep(3)
        (loaded,) = (await node.view()).residents
        for one in asked:
            one.cancel()
        return loaded.slots, loaded.waiting > 0, loaded.wait_s > 0

    assert play(story) == (1, True, True)


def test_without_a_probe_memory_is_judged_by_loads():
    async def story(node):
        view = await node.view()
        return view.memory, view.gpus

    assert play(story, has_probe=False) == ("verify", ())


def test_a_model_that_could_not_be_loaded_is_barred():
    async def story(node):
        node.one.sim.faults.add("status", status=500, route="/api/generate", times=-1)
        await node.ask(call_for(SMALL, is_final=True), hello(SMALL))
        weights = {model.name: model.weights for model in (await node.catalog()).models}
        return (await node.view()).barred == (weights[SMALL],)

    assert play(story)


def test_the_number_of_a_state_rises_only_with_a_change():
    async def story(node):
        first = await node.view()
        await asyncio.sleep(0.5)
        second = await node.view()
        assert second.seq == first.seq
        await node.ask(call_for(SMALL), hello(SMALL))
        return (await node.view()).seq > first.seq

    assert play(story)


def test_each_start_has_a_boot_of_its_own():
    async def story(node):
        return (await node.view()).boot_id

    assert len({play(story) for _ in range(2)}) == 2


def test_a_stream_beats_at_least_once_a_second():
    async def story(node):
        async with stream(node) as following:
            times = []
            for _ in range(4):
                await following()
                times.append(now())
        return [round(later - earlier, 1) for earlier, later in pairwise(times)]

    assert play(story) == [1.0] * 3


def test_a_change_is_told_at_once_and_not_more_than_ten_times_a_second():
    async def story(node):
        await node.ask(call_for(SMALL), hello(SMALL))
        async with stream(node) as following:
            await following()
            began_s, times = now(), []
            asked = [asyncio.create_task(node.ask(call_for(SMALL), hello(SMALL, tokens=3))) for _ in range(40)]
            view = await following()
            assert view.residents[0].in_flight + view.residents[0].waiting > 0
            first_s = now() - began_s
            while now() < began_s + 1.0:
                await following()
                times.append(now())
            await asyncio.gather(*asked)
        return first_s <= 0.11, 2 <= len(times) <= 11

    assert play(story) == (True, True)


def test_a_stream_ends_with_the_router_and_says_so_first_n8():
    """It must not hold up the end, however long requests may go on: its last view says that the node drains."""

    async def story():
        async with AsyncExitStack() as later:
            async with noded(ALONE) as node:
                following = await later.enter_async_context(stream(node))
                await following()
                node.router.grace_s = 1000.0
                began_s = now()
            took_s = now() - began_s
            seen = []
            while (view := await following()) is not None:
                seen.append(view.draining)
        return seen[-1], took_s < 10

    assert run_virtual(story()) == (True, True)


def test_a_stream_that_ends_for_a_successor_does_not_say_that_the_node_drains_n8():
    """After a reload the next router in the same process has its address: fronts come to that at once."""

    async def story():
        async with AsyncExitStack() as later:
            async with noded(ALONE) as node:
                following = await later.enter_async_context(stream(node))
                await following()
                node.router.hand_over_to(node.router.config)
            seen = []
            while (view := await following()) is not None:
                seen.append(view.draining)
        return any(seen)

    assert not run_virtual(story())


def test_requests_go_on_while_a_node_ends_n8():
    """A stream that has begun is answered to its end."""

    async def story():
        async with AsyncExitStack() as later:
            async with noded(ALONE) as node:
                following = await later.enter_async_context(stream(node))
                await node.ask(call_for(SMALL), hello(SMALL))
                working = asyncio.create_task(node.ask(call_for(SMALL), hello(SMALL, tokens=500)))
                await asyncio.sleep(1)
                node.router.grace_s = 1000.0
            reply = await working
            while await following() is not None:
                pass
        return reply.status, reply.is_cut, reply.body.splitlines()[-1].count(b'"done":true')

    assert run_virtual(story()) == (200, False, 1)


def test_the_catalog_says_what_each_model_needs_on_this_node():
    """As the node itself decides: with the largest context it needs what `explain` says of it."""

    async def story(node):
        catalog = await node.catalog()
        view = await node.view()
        assert (view.catalog_digest, view.learned_digest) == (catalog.catalog_digest, catalog.learned_digest)
        by_name = {model.name: model for model in catalog.models}
        assert sorted(by_name) == sorted((BIG, OTHER, MIDDLE, SMALL))
        verdict = (await explained(node.one, OTHER))["variants"][0]
        assert by_name[OTHER].need(verdict["num_ctx"]).need_bytes == pytest.approx(verdict["need_bytes"], rel=0.01)
        assert by_name[OTHER].needs[0].split_bytes is None
        facts = by_name[OTHER].facts()
        return "completion" in facts.capabilities, facts.parameter_count > 1e10, by_name[OTHER].load_s > 0

    assert play(story) == (True, True, True)


def test_two_cards_are_named_together_as_well():
    async def story(node):
        model = next(one for one in (await node.catalog()).models if one.name == BIG)
        return all(need.split_bytes for need in model.needs), model.needs[0].split_bytes < model.needs[-1].split_bytes

    assert play(story, cards=(12288, 12288)) == (True, True)


def test_the_digests_change_with_models_and_with_what_loads_teach():
    async def story(node):
        first = await node.view()
        await node.ask(call_for(SMALL), hello(SMALL))
        await asyncio.sleep(1)
        second = await node.view()
        return first.catalog_digest == second.catalog_digest, first.learned_digest != second.learned_digest

    assert play(story) == (True, True)


def test_a_model_that_is_gone_is_soon_in_no_catalog():
    """What was learned about the others stays as it was told."""

    async def story(node):
        first = await node.view()
        deleted = await send(node.url, "DELETE", "/api/delete", {"model": MIDDLE}, headers_of(None))
        assert deleted.status == 200
        await asyncio.sleep(3)
        second, catalog = await node.view(), await node.catalog()
        assert second.catalog_digest == catalog.catalog_digest != first.catalog_digest
        return sorted(model.name for model in catalog.models), all(model.needs for model in catalog.models)

    assert play(story) == (sorted((BIG, OTHER, SMALL)), True)


def test_the_models_of_a_node_whose_ollama_has_never_answered_are_not_known():
    """That is not the same as none."""

    async def story():
        away = {**ALONE, "backends.local.url": "http://127.0.0.1:9"}
        async with noded(away) as node:
            view, catalog = await node.view(), await node.get("/router/node/catalog")
            return view.is_up, view.catalog_digest, catalog.status

    assert run_virtual(story()) == (False, "", 503)
