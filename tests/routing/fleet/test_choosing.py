"""Which backend gets requests for which no variant is to be chosen, or about which something must be known first."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest

from ollama_simulator.clock import run_virtual
from router.backend.installed import LOOK_UP_S
from router.config import load_config, prepare
from router.core.payload.read import InferenceRequest
from router.core.units import MIB
from router.routing.fleet.away import START_S
from router.routing.fleet.offers import MOST_KEPT as MOST_DECISIONS
from router.routing.fleet.stays import KEPT_S, MOST_KEPT, Stays
from tests.config.keys.play import BIG, EMBEDDER, MIDDLE, SMALL, chat, hello, send
from tests.routing.fleet.stage import fleet, play
from tests.routing.fleet.test_away import lose

TWO = {"a": (24564,), "b": (24564,)}
DESK_TOWER = {"desk": (12288,), "tower": (24564,)}
ALONE = {"defaults.auto_chains": "off"}


def now_s():
    return asyncio.get_running_loop().time()


def contexts(one):
    """Return the contexts of what is loaded on all backends."""
    return [row.context_length for sim in one.sims.values() for row in sim.engine.ps()]


async def hang(reader, writer):
    """Take what comes, and never answer."""
    try:
        await reader.read(-1)
    finally:
        writer.close()


async def answered_early(url, body):
    """Send a request as soon as the router listens; return the answer, and when it was there."""
    while True:
        try:
            reply = await send(url, "POST", "/api/generate", body)
        except ConnectionError:
            await asyncio.sleep(0.01)
        else:
            return reply, now_s()


def asked_while_starting(model, cards, hanging, config=None, **more):
    """Return the answer to the first request of a router, some of whose backends never answer, and when it came."""

    async def run():
        async with AsyncExitStack() as stack:
            options = {**ALONE, **(config or {})}
            for name in hanging:
                server = await stack.enter_async_context(await asyncio.start_server(hang, "127.0.0.1", 0))
                options[f"backends.{name}.url"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with socket.create_server(("127.0.0.1", 0)) as free:
                options["listen"] = f"127.0.0.1:{free.getsockname()[1]}"
            began_s = now_s()
            asked = asyncio.create_task(answered_early(f"http://{options['listen']}", hello(model)))
            await stack.enter_async_context(fleet(cards, options, **more))
            reply, done_s = await asked
            return reply, done_s - began_s

    return run_virtual(run())


def test_a_backend_whose_state_is_still_being_read_holds_up_the_first_requests_for_two_seconds_only():
    """It accepts connections, and never answers. Until then it might have had the model loaded."""
    reply, took_s = asked_while_starting(SMALL, {"a": (24564,)}, "z")
    assert (reply.status, reply.headers["x-router-backend"]) == (200, "a")
    assert START_S <= took_s < START_S + 2


def test_backends_that_are_all_away_serve_again_as_soon_as_one_has_come_back():
    """Without waiting for the other."""

    async def story(one):
        ports = {name: int(one.sims[name].url.rpartition(":")[2]) for name in TWO}
        for name in TWO:
            await lose(one, name)
        assert (await one.ask(hello(SMALL)))[0] == 502
        await one.sims["b"].start("127.0.0.1", ports["b"])
        assert (await one.ask(hello(SMALL)))[:2] == (200, "b")

    play(story, TWO, ALONE)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions"])
def test_a_request_that_names_no_model_is_answered_by_the_first_backend_that_is_up(path):
    """By Ollama itself, with its own error."""

    async def story(one):
        status, backend, _ = await one.ask({}, path)
        await lose(one, "a")
        later = await one.ask({}, path)
        return (status, backend), later[:2]

    (status, backend), later = play(story, TWO, ALONE)
    assert (status // 100, backend) == (4, "a")
    assert later == (status, "b")


def test_an_unknown_name_is_not_found_on_any_backend():
    """And asks each of them once more."""

    async def story(one):
        await asyncio.sleep(LOOK_UP_S)
        for sim in one.sims.values():
            sim.seen.clear()
        assert (await one.ask(hello("unknown:1b")))[0] == 404
        assert all(any(seen.path == "/api/tags" for seen in sim.seen) for sim in one.sims.values())

    play(story, TWO, ALONE)


def test_a_model_that_was_installed_behind_the_routers_back_is_found_where_it_is():
    """At its first request, not with the next reading of the lists."""

    async def story(one):
        await asyncio.sleep(LOOK_UP_S)
        await send(one.sims["b"].url, "POST", "/api/copy", {"source": SMALL, "destination": "copy:1"})
        assert (await one.ask(hello("copy:1")))[:2] == (200, "b")

    play(story, TWO, ALONE)


def test_a_model_that_was_deleted_behind_the_routers_back_is_served_by_the_backend_that_still_has_it():
    """The client does not see that it is not found where it was."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        await send(one.sims[first].url, "DELETE", "/api/delete", {"model": SMALL})
        status, backend, _ = await one.ask(hello(SMALL))
        assert (status, backend) == (200, "b" if first == "a" else "a")

    play(story, TWO, ALONE)


def test_a_model_of_another_server_is_asked_for_where_it_is_named():
    """While that backend is away the error says so: Ollama's own 404 from the other one would be wrong."""

    async def story(one):
        await asyncio.sleep(LOOK_UP_S)
        remote = {"model": "far:1", "from": "gpt-oss:120b", "remote_host": "https://ollama.com"}
        assert (await send(one.sims["tower"].url, "POST", "/api/create", remote)).status == 200
        assert (await one.ask(hello("far:1")))[1] == "tower"
        await lose(one, "tower")
        status, _, reply = await one.ask(hello("far:1"))
        assert (status, b"tower: cannot reach" in reply.body) == (502, True)

    play(story, DESK_TOWER, ALONE, cloud_disabled=False)


def test_an_unload_ends_a_model_on_every_backend_that_has_it_loaded():
    """One answer is from the first of them."""

    async def story(one):
        await one.load_everywhere(SMALL)
        assert [one.residents(name) for name in TWO] == [[SMALL], [SMALL]]
        status, backend, _ = await one.ask({"model": SMALL, "keep_alive": 0})
        assert (status, backend) == (200, "a")
        await asyncio.sleep(5)
        assert [one.residents(name) for name in TWO] == [[], []]

    play(story, TWO, ALONE)


def test_an_unload_goes_where_the_model_is_loaded_and_loads_nothing():
    """The first backend has it installed only."""

    async def story(one):
        await one.ask(hello(BIG))
        assert (await one.ask({"model": BIG, "keep_alive": 0}))[:2] == (200, "tower")
        assert (await one.ask({"model": BIG, "keep_alive": 0}))[0] == 200
        await asyncio.sleep(5)
        assert [one.residents(name) for name in DESK_TOWER] == [[], []]
        assert len(one.loads) == 1

    play(story, DESK_TOWER, ALONE)


def test_embeddings_go_to_the_backend_that_has_the_embedder_loaded():
    """On both APIs."""

    async def story(one):
        body = {"model": EMBEDDER, "input": "hello"}
        found = [(await one.ask(body, path))[:2] for path in ("/api/embed", "/v1/embeddings", "/api/embed")]
        assert found == [(200, "tower")] * 3
        assert one.loads == [("tower", EMBEDDER)]

    play(story, DESK_TOWER, ALONE, models={"desk": (SMALL,), "tower": (BIG, EMBEDDER)})


@pytest.mark.parametrize(("is_derived", "context"), [(True, 8192), (False, 32768)])
def test_v1_requests_run_at_the_decided_context_or_without_derived_tags_at_ollamas_own(is_derived, context):
    """As with one backend."""

    async def story(one):
        assert (await one.ask(chat(SMALL), "/v1/chat/completions"))[0] == 200
        assert contexts(one) == [context]

    play(story, TWO, {**ALONE, "defaults.num_ctx": 8192, "defaults.derived_tags": is_derived}, models=(SMALL,))


@pytest.mark.parametrize(
    ("rule", "status"), [("refuse", 503), ("wait", 503), ("allow_partial", 200), ("passthrough", 200)]
)
def test_what_fits_nowhere_is_refused_waited_for_or_passed_by_its_rule(rule, status):
    """Too big for both: by `passthrough` Ollama itself spills it. A second request is told the same as the first."""

    async def story(one):
        first, second = await one.ask(hello(BIG)), await one.ask(hello(BIG))
        assert [first[0], second[0]] == [status] * 2
        if status == 503:
            assert all(f"{name}: " in second[2].json()["error"] for name in ("a", "b"))
            assert one.loads == []

    play(story, {"a": (12288,), "b": (8192,)}, {**ALONE, "defaults.nothing_fits": rule, "queue.wait_s": 20})


async def waiting_for_memory(one):
    """Return a request for a model that waits, since others hold the cards of both backends."""
    for name in TWO:
        one.sims[name].cards.set_foreign(0, 20000 * MIB)
    await asyncio.sleep(3)
    asked = asyncio.create_task(one.ask(hello(BIG)))
    await asyncio.sleep(5)
    assert not asked.done()
    return asked


def test_a_request_that_waits_for_memory_goes_to_the_backend_where_it_gets_free():
    """By `wait`: others hold the cards of both, and those of one go."""

    async def story(one):
        asked = await waiting_for_memory(one)
        one.sims["b"].cards.set_foreign(0, 0)
        assert (await asked)[:2] == (200, "b")

    play(story, TWO, {**ALONE, "defaults.nothing_fits": "wait"})


def test_requests_that_wait_at_a_backend_that_goes_away_are_served_by_another():
    """None of them has got a byte. The other one has only a smaller variant, for which they would not have moved."""

    async def story(one):
        assert (await one.ask(hello("best", tokens=1)))[1] == "a"
        asked = [asyncio.create_task(one.ask(hello("best", tokens=3000, stream=False))) for _ in range(6)]
        await asyncio.sleep(2)
        assert one.loads == [("a", BIG)]
        await one.sims["a"].stop()
        found = await asyncio.gather(*asked)
        assert [(status, backend) for status, backend, _ in found] == [(200, "b")] * 6

    config = {**ALONE, "fleet.retry_share": 1, "chains": {"best": [BIG, SMALL]}}
    play(story, TWO, config, models={"a": (BIG,), "b": (SMALL,)})


def test_a_model_to_preload_is_loaded_on_one_backend_only():
    """On that which would serve it."""

    async def story(one):
        await asyncio.sleep(10)
        assert one.loads == [("tower", BIG)]

    play(story, DESK_TOWER, {"defaults.auto_chains": "off", "defaults.preload": [BIG]})


def test_a_reload_changes_the_chains_on_all_backends():
    """Also of names that were asked for before."""

    async def story(one):
        assert (await one.ask(hello("best")))[2].headers["x-router-model"] == BIG
        options = {"listen": one.router.config.listen, "admin": one.router.config.admin, "store.path": ":memory:"}
        options |= {f"backends.{name}.url": sim.url for name, sim in one.sims.items()}
        options |= {**ALONE, "chains": {"best": [SMALL]}}
        one.router.take_over(prepare(load_config(env={}, options=options), 2))
        assert (await one.ask(hello("best")))[2].headers["x-router-model"] == SMALL

    play(story, TWO, {**ALONE, "chains": {"best": [BIG, MIDDLE]}})


def test_that_a_request_stays_is_known_for_less_than_a_second_of_those_that_wait_no_longer():
    """And of a bounded number of kinds."""
    stays = Stays()
    stays.note("first", 5.0, 100.0)
    assert stays.holds("first", 5.0, 100.0 + KEPT_S / 2)
    assert not stays.holds("first", 6.0, 100.0 + KEPT_S / 2)
    assert not stays.holds("first", 5.0, 100.0 + KEPT_S)
    assert not stays.holds("other", 0.0, 100.0)
    for number in range(MOST_KEPT):
        stays.note(number, 5.0, 100.0)
    assert not stays.holds("first", 5.0, 100.0)
    assert stays.holds(MOST_KEPT - 1, 5.0, 100.0)


def test_an_unload_of_a_chain_ends_each_of_its_variants_where_it_is_loaded():
    """Not all of them are on each backend."""

    async def story(one):
        for model in (MIDDLE, SMALL):
            for place in one.router.router.routes.places:
                if (model, place.name) != (MIDDLE, "b"):
                    await one.load(place, model)
        assert [one.residents(name) for name in TWO] == [[MIDDLE, SMALL], [SMALL]]
        assert (await one.ask({"model": "best", "keep_alive": 0}))[0] == 200
        await asyncio.sleep(5)
        assert one.residents("b") == []
        assert MIDDLE not in one.residents("a")

    play(story, TWO, {**ALONE, "chains": {"best": [MIDDLE, SMALL]}})


def test_a_chain_that_may_be_on_a_backend_that_is_still_being_read_is_not_called_unknown():
    """That one accepts connections, and never answers: the client may try again."""
    config = {"chains": {"best": [BIG]}}
    reply, took_s = asked_while_starting("best", {"a": (24564,)}, "z", config, models=(SMALL,))
    assert (reply.status, reply.json()["error"].startswith("z: "), reply.headers["retry-after"]) == (502, True, "5")
    assert START_S <= took_s < START_S + 1


def test_requests_while_no_backend_has_ever_answered_fail_with_what_is_wrong_with_each():
    """They wait for them at the start, and look once more."""
    reply, took_s = asked_while_starting(SMALL, {}, "yz")
    error = reply.json()["error"]
    assert (reply.status, "y: " in error, "z: " in error) == (502, True, True)
    assert took_s > START_S


def test_a_request_for_what_was_deleted_while_it_waited_for_memory_is_not_found():
    """It does not wait on at the backend where it was installed."""

    async def story(one):
        asked = await waiting_for_memory(one)
        for name in TWO:
            await send(one.sims[name].url, "DELETE", "/api/delete", {"model": BIG})
        began_s = now_s()
        status, _, reply = await asked
        return status, reply.json()["error"], now_s() - began_s

    status, error, took_s = play(story, TWO, {**ALONE, "defaults.nothing_fits": "wait", "queue.wait_s": 300})
    assert (status, took_s < 120) == (404, True), (error, took_s)


def test_requests_of_very_many_kinds_are_ranked_as_if_each_were_the_first():
    """What is kept of decisions is bounded, and forgetting it changes none."""

    async def story(one):
        routes = one.router.router.routes
        chain = routes.places[0].decisions.explain(SMALL)[0]
        kinds = [InferenceRequest(SMALL, num_ctx=2048 + number) for number in range(MOST_DECISIONS)]
        contexts = [routes.ranked(kind, chain)[0].offer.chosen.num_ctx for kind in kinds]
        assert all(0 <= found - kind.num_ctx < 2048 for found, kind in zip(contexts, kinds, strict=True))
        assert [one.offer.chosen.num_ctx for one in routes.ranked(kinds[0], chain)] == [2048] * 2

    play(story, TWO, ALONE, models=(SMALL,))
