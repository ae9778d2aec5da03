"""Models that only a backend has that does not answer now: what clients and operators are told meanwhile."""

from __future__ import annotations

import asyncio

from tests.config.keys.play import BIG, MIDDLE, SMALL, get, hello, send
from tests.routing.fleet.stage import play

DESK_TOWER = {"desk": (12288,), "tower": (24564,)}
OWN = {"desk": (SMALL,), "tower": (BIG, MIDDLE)}
ALONE = {"defaults.auto_chains": "off"}


async def lose(one, name):
    await one.sims[name].stop()
    await asyncio.sleep(5)


def test_a_request_for_what_only_an_away_backend_has_says_that_it_does_not_answer():
    """Not that the model is not installed; the client may try again."""

    async def story(one):
        await lose(one, "tower")
        for path in ("/api/generate", "/v1/completions"):
            body = hello(BIG) if path.startswith("/api") else {"model": BIG, "prompt": "hello"}
            status, _, reply = await one.ask(body, path)
            assert status == 502
            assert b"tower: cannot reach" in reply.body
            assert b"pull" not in reply.body
            assert int(reply.headers["retry-after"]) > 0
            assert "x-should-retry" not in reply.headers
        assert (await one.ask(hello(SMALL)))[:2] == (200, "desk")

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_it_is_served_as_soon_as_that_backend_answers_again():
    """The request itself looks once more."""

    async def story(one):
        await lose(one, "tower")
        assert (await one.ask(hello(BIG)))[0] == 502
        await one.sims["tower"].start(port=int(one.sims["tower"].url.rpartition(":")[2]))
        assert (await one.ask(hello(BIG)))[:2] == (200, "tower")

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_with_nothing_fits_wait_it_waits_for_that_backend_as_long_as_for_memory():
    """Then the error is that of the backend."""

    async def story(one):
        await lose(one, "tower")
        asked = asyncio.create_task(one.ask(hello(BIG)))
        await asyncio.sleep(20)
        await one.sims["tower"].start(port=int(one.sims["tower"].url.rpartition(":")[2]))
        assert (await asked)[:2] == (200, "tower")
        await lose(one, "tower")
        began_s = asyncio.get_running_loop().time()
        assert (await one.ask(hello(BIG)))[0] == 502
        assert 60 <= asyncio.get_running_loop().time() - began_s < 70

    config = {**ALONE, "defaults.nothing_fits": "wait", "queue.wait_s": 60}
    play(story, DESK_TOWER, config, models=OWN)


def test_a_chain_goes_on_with_a_smaller_variant_that_another_backend_has():
    """It is listed as long as one of its variants can be served, and shown by what serves it."""

    async def story(one):
        await lose(one, "tower")
        status, backend, reply = await one.ask(hello("best"))
        assert (status, backend, reply.headers["x-router-model"]) == (200, "desk", SMALL)
        assert (await one.ask({"model": "best"}, "/api/show"))[:2] == (200, "desk")

    play(story, DESK_TOWER, {**ALONE, "chains": {"best": [BIG, MIDDLE, SMALL]}}, models=OWN)


def test_a_chain_of_which_nothing_is_known_to_be_elsewhere_waits_for_a_backend_that_never_answered():
    """It may have a variant; a name without a chain is Ollama's own 404."""

    async def story(one):
        status, _, reply = await one.ask(hello("best"))
        assert (status, b"z: " in reply.body, b"pull" in reply.body) == (502, True, False)
        assert (await one.ask(hello("unknown:1b")))[0] == 404

    config = {**ALONE, "chains": {"best": [BIG, MIDDLE]}, "backends.z.url": "http://127.0.0.1:9"}
    play(story, {"a": (24564,)}, config, models={"a": (SMALL,)})


def test_lists_leave_out_what_only_an_away_backend_has():
    """As well the chains of which it alone has a variant; one that is named after its model is shown as a chain."""

    async def story(one):
        before = {row["name"] for row in (await one.get("/api/tags")).json()["models"]}
        assert before == {BIG, MIDDLE, SMALL, "large:latest"}
        await lose(one, "tower")
        for path, rows, key in (("/api/tags", "models", "name"), ("/v1/models", "data", "id")):
            assert {row[key] for row in (await one.get(path)).json()[rows]} == {SMALL, MIDDLE}

    chains = {"large": [BIG], MIDDLE: [MIDDLE, SMALL]}
    play(story, DESK_TOWER, {**ALONE, "chains": chains}, models=OWN)


def test_show_and_management_of_such_a_model_say_that_its_backend_does_not_answer():
    """A 404 would say that there is no such model."""

    async def story(one):
        await lose(one, "tower")
        asked = [await send(one.router.url, "POST", "/api/show", {"model": BIG})]
        asked.append(await send(one.router.url, "DELETE", "/api/delete", {"model": BIG}))
        asked.append(await send(one.router.url, "POST", "/api/copy", {"source": BIG, "destination": "x:1"}))
        assert [reply.status for reply in asked] == [502] * 3
        assert all(b"tower: cannot reach" in reply.body for reply in asked)
        missing = await send(one.router.url, "DELETE", "/api/delete", {"model": "unknown:1b"})
        assert missing.status == 404

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_an_unload_of_such_a_model_says_it_too():
    """And a request with an option of the wrong type."""

    async def story(one):
        await lose(one, "tower")
        assert (await one.ask({"model": BIG, "keep_alive": 0}))[0] == 502
        assert (await one.ask({**hello(BIG), "options": {"num_ctx": "x"}}))[0] == 502

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_explain_names_the_backend_that_does_not_answer_and_works_while_the_first_one_is_away():
    """The ranking begins with the one that has it."""

    async def story(one):
        await lose(one, "desk")
        assert (await one.admin(f"/router/explain?model={BIG}"))["backend"] == "tower"
        missing = await get(one.router.admin_url, "/router/explain?model=unknown:1b")
        assert (missing.status, missing.json()["error"]) == (404, "model 'unknown:1b' not found")
        found = await one.admin(f"/router/explain?model={SMALL}")
        assert found["ranking"][0]["backend"] == "desk"
        assert "cannot reach" in found["ranking"][0]["reason"]

    play(story, DESK_TOWER, ALONE, models=OWN)


def test_a_refusal_is_not_for_ever_while_a_backend_is_away_that_may_serve_it():
    """The desk is too small for its own variant; the tower has it, too."""

    async def story(one):
        status, _, reply = await one.ask(hello(BIG))
        assert status == 200
        await lose(one, "tower")
        status, _, reply = await one.ask(hello(BIG))
        assert status == 503
        assert "retry-after" in reply.headers
        assert b"tower: cannot reach" in reply.body

    play(story, DESK_TOWER, ALONE, models={"desk": (BIG,), "tower": (BIG,)})


def test_a_model_that_fails_on_the_only_backend_that_has_it_is_not_left_out_there():
    """The other one would say that it is not installed."""

    async def story(one):
        assert (await one.ask(hello(BIG)))[:2] == (200, "tower")
        one.sims["tower"].faults.add("status", status=500, route="/api/generate", model=BIG, times=8)
        for _ in range(8):
            assert (await one.ask(hello(BIG)))[:2] == (500, "tower")
        assert (await one.ask(hello(BIG)))[:2] == (200, "tower")

    play(story, DESK_TOWER, ALONE, models=OWN)
