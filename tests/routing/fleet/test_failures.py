"""Backends that are away, fail or hang: requests go on elsewhere while nothing of an answer was sent (C1 to C9)."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from ollama_simulator.machine.spec import Speeds
from router.errors import UpstreamTimeout, UpstreamUnreached
from router.routing.fleet.choosing import Choosing
from router.routing.fleet.failures import is_worth_another_place
from router.routing.fleet.offers import Offers
from tests.config.keys.play import BIG, HUGE, MIDDLE, SMALL, connect, hello, send
from tests.fakes import request_bytes
from tests.routing.fleet.stage import play

TWO = {"a": (24564,), "b": (24564,)}
ALONE = {"defaults.auto_chains": "off"}


def generations(one, name):
    """Return the requests with a prompt that a backend has had."""
    posts = (seen for seen in one.sims[name].seen if seen.path == "/api/generate")
    return [seen for seen in posts if json.loads(seen.body or b"{}").get("prompt")]


def other_than(name):
    return "b" if name == "a" else "a"


def test_a_backend_that_is_away_at_the_start_holds_up_nobody_and_is_used_when_it_comes():
    """`/readyz` is ready, and says which is not."""

    async def story(one):
        assert (await one.ask(hello(SMALL)))[:2] == (200, "a")
        ready = await one.get("/readyz")
        assert ready.status == 200
        rows = ready.json()["backends"]
        assert (rows["a"]["ready"], rows["z"]["ready"]) == (True, False)
        assert "cannot reach" in ready.json()["error"]

    play(story, {"a": (24564,)}, {**ALONE, "backends.z.url": "http://127.0.0.1:9"})


def test_with_all_backends_away_the_error_names_each():
    """And `/readyz` is not ready."""

    async def story(one):
        await asyncio.gather(*(sim.stop() for sim in one.sims.values()))
        await asyncio.sleep(5)
        status, _, reply = await one.ask(hello(SMALL))
        assert (status, b"a: cannot reach" in reply.body, b"b: cannot reach" in reply.body) == (502, True, True)
        assert (await one.get("/readyz")).status == 503

    play(story, TWO, ALONE)


def test_what_a_backend_had_loaded_is_not_shown_while_it_is_away():
    """The state and the dashboard name the one that is away, with its error."""

    async def story(one):
        await one.ask(hello(BIG))
        await one.ask(hello(SMALL))
        await one.sims["b"].stop()
        await asyncio.sleep(5)
        state, board = await one.admin("/router/state"), await one.admin("/router/board")
        assert [(row["name"], row["backend"]) for row in state["residents"]] == [(SMALL, "a")]
        assert [(row["name"], row["backend"]) for row in board["models"]] == [(SMALL, "a")]
        for notes in (state["notes"], board["notes"]):
            assert notes[0].startswith("b: Ollama does not answer: cannot reach")

    play(story, {"a": (6144,), "b": (24564,)}, ALONE)


def test_a_model_of_a_backend_that_is_away_may_be_asked_for_again():
    """The backend may come back, so the refusal is not a lasting one; where both answer it is."""

    async def story(one):
        _, _, lasting = await one.ask(hello(HUGE))
        assert (lasting.status, "retry-after" in lasting.headers) == (503, False)
        await one.sims["b"].stop()
        await asyncio.sleep(5)
        status, _, reply = await one.ask(hello(BIG))
        assert (status, "b: cannot reach" in reply.json()["error"]) == (502, True)
        assert int(reply.headers["retry-after"]) > 0
        assert "x-should-retry" not in reply.headers

    play(story, {"a": (6144,), "b": (24564,)}, ALONE, models={"a": (SMALL, HUGE), "b": (BIG, HUGE)})


def test_a_backend_that_dies_breaks_only_its_own_streams():
    """The others end as if nothing had happened, and the next requests go where it lives."""

    async def story(one):
        async def stream(model):
            raw = await connect(one.router.url)
            reply = await raw.ask("POST", "/api/generate", json.dumps(hello(model, tokens=500)))
            raw.close()
            return reply

        streams = [asyncio.create_task(stream(model)) for model in (SMALL, MIDDLE)]
        await asyncio.sleep(4)
        held = {name: one.residents(name) for name in TWO}
        dying = next(name for name in TWO if held[name] == [SMALL]) if held["a"] != held["b"] else None
        if dying is None or sorted(map(len, held.values())) != [1, 1]:
            pytest.skip(f"both went to one: {held}")
        await one.sims[dying].stop()
        broken, whole = await asyncio.gather(*streams)
        assert b'"done":true' in whole.body
        assert b'"done":true' not in broken.body
        assert b"error" in broken.body
        assert (await one.ask(hello(SMALL)))[:2] == (200, other_than(dying))

    play(story, {"a": (6144,), "b": (12288,)}, ALONE)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ({"kind": "reset", "after_chunks": 0}, (2, 0)),  # its connection was kept: once more by a new one
        ({"kind": "reset", "after_chunks": 0, "times": 2}, (2, 1)),
        ({"kind": "status", "status": 503}, (1, 1)),
        ({"kind": "status", "status": 502}, (1, 1)),
        ({"kind": "status", "status": 500, "body": '{"error":"llama runner process has terminated"}'}, (1, 1)),
        ({"kind": "status", "status": 500, "body": '{"error":"template: unknown function"}'}, (1, 0)),
        ({"kind": "status", "status": 400, "body": '{"error":"invalid"}'}, (1, 0)),
        ({"kind": "cut", "after_chunks": 1}, (1, 0)),
    ],
)
def test_a_request_goes_to_another_backend_only_while_nothing_was_sent_c1(fault, seen):
    """After the first line never; and each backend sees it once by a connection."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        one.sims[first].faults.add(**fault, route="/api/generate", model=SMALL)
        for sim in one.sims.values():
            sim.seen.clear()
        status, backend, reply = await one.ask(hello(SMALL))
        assert (len(generations(one, first)), len(generations(one, other_than(first)))) == seen
        if sum(seen) > 1:
            assert (status, backend) == (200, other_than(first) if seen[1] else first)
            assert b'"done":true' in reply.body
            assert [end.outcome for end in one.ended()] == ["completed"] * 2

    play(story, TWO, ALONE)


def test_a_request_that_reached_nobody_goes_to_another_backend_and_one_that_hangs_does_not_b3():
    """Where it hangs it may be at work; tests/e2e/test_two_machines.py pulls the cable out."""
    assert is_worth_another_place(UpstreamUnreached("no connection within 2 s"))
    assert not is_worth_another_place(UpstreamTimeout("did not answer within 330 s"))


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions"])
def test_the_error_after_several_attempts_says_how_many_there_were_c9(path):
    """That of Ollama as well as the router's own."""

    async def story(one, fault):
        await one.load_everywhere(SMALL)
        for sim in one.sims.values():
            sim.faults.add(**fault, route=path, times=-1)
        body = {"model": SMALL, "prompt": "hello", "messages": [{"role": "user", "content": "hello"}], "stream": False}
        first = await one.ask(body, path)
        large = await one.ask(body | {"x": "x" * 300_000}, path)
        return [(status, reply.headers.get("x-router-attempts")) for status, _, reply in (first, large)]

    for fault in ({"kind": "reset", "after_chunks": 0}, {"kind": "status", "status": 503}):
        found = play(partial(story, fault=fault), TWO, ALONE)
        assert [attempts for _, attempts in found] == ["2", "2"]
        assert all(status >= 500 for status, _ in found)


def test_a_request_whose_load_fails_is_served_by_the_next_backend():
    """On the first one the model is barred for a while."""

    async def story(one):
        body = '{"error":"llama runner process has terminated"}'
        fault = one.sims["a"].faults.add("status", status=500, body=body, route="/api/generate", times=-1)
        other = one.sims["b"].faults.add("status", status=500, body=body, route="/api/generate", times=-1)
        first = next(iter((await one.admin(f"/router/explain?model={SMALL}"))["ranking"]))["backend"]
        (other if first == "a" else fault).times = 0
        status, backend, reply = await one.ask(hello(SMALL))
        assert (status, backend, reply.headers["x-router-attempts"]) == (200, other_than(first), "2")
        assert [row["backend"] for row in (await one.admin("/router/state"))["barred"]] == [first]

    play(story, TWO, ALONE)


def test_the_error_of_loads_that_failed_everywhere_says_how_many_were_tried():
    """Nothing was sent but loads."""

    async def story(one):
        for sim in one.sims.values():
            body = '{"error":"llama runner process has terminated"}'
            sim.faults.add("status", status=500, body=body, route="/api/generate", times=-1)
        return await one.ask(hello(SMALL))

    status, _, reply = play(story, TWO, ALONE)
    assert (status, reply.headers["x-router-attempts"]) == (500, "2")


def test_with_every_backend_failing_retries_are_few_c3():
    """At most one request in five is sent again, and three more."""

    async def story(one):
        await one.ask(hello(SMALL))
        for sim in one.sims.values():
            sim.faults.add("status", status=503, route="/api/generate", times=-1)
            sim.seen.clear()
        count = 100
        found = [await one.ask(hello(SMALL)) for _ in range(count)]
        assert all(status >= 500 for status, _, _ in found)
        sent = sum(len(generations(one, name)) for name in TWO)
        assert sent <= 1.2 * count + 3

    play(story, TWO, ALONE)


def test_a_model_that_fails_on_a_backend_again_and_again_is_left_out_there_c5():
    """Its requests go to the other; after `breaker_open_s` one tries it again. Other models are not left out."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        fault = one.sims[first].faults.add("status", status=500, route="/api/generate", model=SMALL, times=-1)
        for _ in range(5):
            assert (await one.ask(hello(SMALL)))[0] == 500
        ranking = (await one.admin(f"/router/explain?model={SMALL}"))["ranking"]
        assert ranking[-1]["backend"] == first
        assert "left out" in ranking[-1]["reason"]
        assert [(await one.ask(hello(SMALL)))[:2] for _ in range(3)] == [(200, other_than(first))] * 3
        fault.times = 0
        await asyncio.sleep(31)
        ranking = (await one.admin(f"/router/explain?model={SMALL}"))["ranking"]
        assert "left out" not in ranking[-1]["reason"]

    play(story, TWO, ALONE)


def test_the_request_that_tries_a_backend_again_stays_there_while_its_model_is_loaded_c5():
    """It would move to the smaller variant of the other after a second, and no result would ever close the breaker."""

    async def story(one):
        assert (await one.ask(hello("best")))[1] == "b"
        fault = one.sims["b"].faults.add("status", status=500, route="/api/generate", model=BIG, times=-1)
        assert [(await one.ask(hello("best")))[0] for _ in range(5)] == [500] * 5
        assert (await one.ask(hello("best")))[:2] == (200, "a")
        fault.times = 0
        await send(one.sims["b"].url, "POST", "/api/generate", {"model": BIG, "keep_alive": 0})
        await asyncio.sleep(31)
        status, backend, reply = await one.ask(hello("best"))
        assert (status, backend, reply.headers["x-router-model"]) == (200, "b", BIG)
        assert int(reply.headers["x-router-queue-ms"]) > 2000
        ranking = (await one.admin("/router/explain?model=best"))["ranking"]
        assert (ranking[0]["backend"], "left out" in ranking[0]["reason"]) == ("b", False)

    chain = {"defaults.auto_chains": "off", "chains": {"best": [BIG, SMALL]}}
    slow = Speeds(load_mib_per_s=4000, tokens_per_s=100, cpu_tokens_per_s=4)
    play(story, TWO, chain, models={"a": (SMALL,), "b": (BIG,)}, speeds=slow)


def test_clients_that_leave_do_not_count_against_a_backend_c7():
    """Nor do their mistakes."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        for _ in range(20):
            raw = await connect(one.router.url)
            await raw.send(request_bytes("POST", "/api/generate", json.dumps(hello(SMALL, tokens=400))))
            await asyncio.sleep(0.3)
            raw.close()
            await asyncio.sleep(0.3)
        ranking = (await one.admin(f"/router/explain?model={SMALL}"))["ranking"]
        assert ranking[0]["backend"] == first
        assert all("left out" not in row["reason"] for row in ranking)

    play(story, TWO, ALONE)


def test_a_request_that_ollama_itself_refuses_for_an_option_does_not_count_against_a_backend_c7():
    """Its answer to an option of a wrong type is a 500; others keep the place that holds their model."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]
        wrong = {**hello(SMALL), "options": {"num_ctx": "many"}}
        assert [(await one.ask(wrong))[0] for _ in range(6)] == [500] * 6
        ranking = (await one.admin(f"/router/explain?model={SMALL}"))["ranking"]
        assert ranking[0]["backend"] == first
        assert all("left out" not in row["reason"] for row in ranking)

    play(story, TWO, ALONE)


def test_at_most_half_of_the_backends_are_left_out_c6():
    """Of three that fail one is left out, whatever the others do; if all fail, all are tried."""

    async def story(one):
        await one.load_everywhere(SMALL)
        for sim in one.sims.values():
            sim.faults.add("status", status=500, route="/api/generate", model=SMALL, times=-1)
        for _ in range(30):
            await one.ask(hello(SMALL))
            rows = (await one.admin(f"/router/explain?model={SMALL}"))["ranking"]
            assert sum("left out" in row["reason"] for row in rows) <= 1

    play(story, {**TWO, "c": (24564,)}, ALONE)


def test_a_flapping_backend_costs_few_errors_c8():
    """Five seconds up, five seconds down, for five minutes."""

    async def story(one):
        first = (await one.ask(hello(SMALL)))[1]

        async def flap():
            while True:
                await asyncio.sleep(5)
                one.sims[first].faults.add("reset", after_chunks=0, times=-1)
                await asyncio.sleep(5)
                one.sims[first].faults.clear()

        flapping = asyncio.create_task(flap())
        found = []
        for _ in range(300):
            found.append((await one.ask(hello(SMALL)))[0])
            await asyncio.sleep(0.9)
        flapping.cancel()
        assert sum(status != 200 for status in found) <= 3

    play(story, TWO, ALONE)


def test_two_models_that_do_not_fit_together_are_never_loaded_together_h4():
    """Many rounds at once, on two backends of which one holds both: nothing spills."""

    async def story(one):
        for _ in range(10):
            found = await asyncio.gather(*(one.ask(hello(model)) for model in (MIDDLE, "qwen3:14b") * 3))
            assert {status for status, _, _ in found} == {200}
            for sim in one.sims.values():
                assert all(row.size_vram_bytes >= row.size_bytes for row in sim.engine.ps())

    play(story, {"a": (12288,), "b": (12288,)}, ALONE, models=(MIDDLE, "qwen3:14b"))


@pytest.mark.parametrize("waits_s", [0, 3])
def test_a_refusal_that_cannot_be_explained_ends_its_request(monkeypatch, waits_s):
    """At once, or after it has waited: it is reported once, and holds nothing any more."""

    def fail(*_):
        raise RuntimeError("odd")

    monkeypatch.setattr(Choosing, "refused_by_all", fail)

    async def story(one):
        assert [(await one.ask(hello(BIG)))[0] for _ in range(2)] == [500] * 2  # the second one without a reading
        assert [(ended.status, ended.outcome) for ended in one.ended()] == [(500, "failed")] * 2

    config = {"defaults.auto_chains": "off", "defaults.nothing_fits": "wait" if waits_s else "refuse"}
    play(story, {"a": (4096,), "b": (4096,)}, {**config, "queue.wait_s": 3})


def test_a_fault_of_what_ranks_the_backends_ends_its_request(monkeypatch):
    """The first one could not be sent; the next is served."""
    ranked, faults = Offers.ranked, [RuntimeError("odd")]

    def fails_once(*arguments):
        if faults:
            raise faults.pop()
        return ranked(*arguments)

    monkeypatch.setattr(Offers, "ranked", fails_once)

    async def story(one):
        assert [(await one.ask(hello(SMALL)))[0] for _ in range(2)] == [500, 200]
        assert [(ended.status, ended.outcome) for ended in one.ended()] == [(500, "failed"), (200, "completed")]

    play(story, TWO, ALONE)
