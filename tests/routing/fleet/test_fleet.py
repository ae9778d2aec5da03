"""Several Ollamas behind one router: where requests go."""

from __future__ import annotations

import asyncio
import threading

import pytest

from router.api.beside import beside
from router.core.units import MIB
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, chat, get, hello, send
from tests.routing.fleet.stage import play

DESK_TOWER = {"desk": (12288,), "tower": (24564,)}
CHAIN = {"defaults.auto_chains": "off", "chains": {"best": [BIG, MIDDLE, SMALL]}}


def test_the_bigger_variant_wins_wherever_it_fits():
    """Only the tower can hold the big one; the desk is named first."""

    async def story(one):
        status, backend, reply = await one.ask(hello("best"))
        assert (status, backend, reply.headers["x-router-model"]) == (200, "tower", BIG)
        assert one.residents("desk") == []

    play(story, DESK_TOWER, CHAIN)


def test_a_small_model_leaves_the_big_card_free():
    """Of the places where it fits the one with the smallest cards takes it."""

    async def story(one):
        assert [(await one.ask(hello(SMALL)))[1] for _ in range(3)] == ["desk"] * 3
        assert (await one.ask(hello(BIG)))[1] == "tower"

    play(story, DESK_TOWER, {"defaults.auto_chains": "off"})


def test_the_holder_of_a_model_gets_its_requests():
    """A model is loaded once, although it fits on both."""

    async def story(one):
        for _ in range(4):
            assert (await one.ask(chat(MIDDLE), "/v1/chat/completions"))[0] == 200
        assert [model for _, model in one.loads] == [MIDDLE]

    play(story, {"a": (24564,), "b": (24564,)}, {"defaults.auto_chains": "off"})


def test_two_models_that_do_not_fit_together_go_to_two_places():
    """At once: neither is unloaded for the other."""

    async def story(one):
        found = await asyncio.gather(*(one.ask(hello(model, tokens=50)) for model in (BIG, OTHER, BIG, OTHER)))
        assert [status for status, _, _ in found] == [200] * 4
        assert sorted(model for _, model in one.loads) == sorted([BIG, OTHER])
        assert len({backend for _, backend, _ in found}) == 2

    play(story, {"a": (24564,), "b": (24564,)}, {"defaults.auto_chains": "off"})


def test_lists_are_merged_and_say_where_a_model_is_loaded():
    """A model that both have is listed once; a chain is listed, too; loaded models name their backend."""

    async def story(one):
        tags = (await one.get("/api/tags")).json()["models"]
        assert sorted(row["name"] for row in tags) == sorted([BIG, MIDDLE, SMALL, "best:latest"])
        ids = (await one.get("/v1/models")).json()["data"]
        assert sorted(row["id"] for row in ids) == sorted([BIG, MIDDLE, SMALL, "best:latest"])
        await one.ask(hello(BIG))
        await one.ask(hello(SMALL))
        answer = await one.get("/api/ps")
        assert {(row["name"], row["backend"]) for row in answer.json()["models"]} == {(BIG, "tower"), (SMALL, "desk")}
        assert answer.headers["x-router-backend"] == "desk, tower"

    play(story, DESK_TOWER, CHAIN, models={"desk": (MIDDLE, SMALL), "tower": (BIG, MIDDLE)})


def test_a_backend_whose_list_does_not_come_holds_up_nobody():
    """What the others have is listed after `timeouts.control_s`; the answer names those that it is from."""

    async def story(one):
        one.sims["desk"].faults.add("hang", route="/v1/models", after_chunks=0, times=-1)
        began_s = asyncio.get_running_loop().time()
        answer = await one.get("/v1/models")
        took_s = asyncio.get_running_loop().time() - began_s
        assert {row["id"] for row in answer.json()["data"]} == {BIG}
        assert (answer.headers["x-router-backend"], round(took_s)) == ("tower", 2)
        one.sims["tower"].faults.add("hang", route="/v1/models", after_chunks=0, times=-1)
        assert (await one.get("/v1/models")).status == 504

    config = {"defaults.auto_chains": "off", "timeouts.control_s": 2}
    play(story, DESK_TOWER, config, models={"desk": (MIDDLE,), "tower": (BIG,)})


@pytest.mark.parametrize("inline_bytes", [100, 1 << 20])
def test_large_lists_are_merged_beside_the_loop(inline_bytes):
    """The thread for large bodies is kept busy until then."""

    async def story(one):
        is_released = threading.Event()
        busy = asyncio.ensure_future(beside(is_released.wait))
        try:
            asked = asyncio.ensure_future(one.get("/api/tags"))
            await asyncio.sleep(1)
            assert asked.done() == (inline_bytes > 100)
        finally:
            is_released.set()
        assert {row["name"] for row in (await asked).json()["models"]} == {BIG, MIDDLE}
        await busy

    config = {"defaults.auto_chains": "off", "limits.inline_bytes": inline_bytes}
    play(story, DESK_TOWER, config, models={"desk": (MIDDLE,), "tower": (BIG,)})


def test_a_fallback_may_be_on_another_backend_than_the_asked_model():
    """The tower has only the big one, and others hold its card; the desk has a smaller one of its chain."""

    async def story(one):
        one.sims["tower"].cards.set_foreign(0, 20000 * MIB)
        await asyncio.sleep(3)
        status, backend, reply = await one.ask(hello("best"))
        assert (status, backend, reply.headers["x-router-model"]) == (200, "desk", MIDDLE)

    play(story, DESK_TOWER, CHAIN, models={"desk": (MIDDLE, SMALL), "tower": (BIG,)})


def test_show_and_management_go_where_the_model_is():
    """A deletion goes to each that has it, a header names one, and an unknown backend is refused."""

    async def story(one):
        status, backend, _ = await one.ask({"model": BIG}, "/api/show")
        assert (status, backend) == (200, "tower")
        status, backend, _ = await one.ask({"source": MIDDLE, "destination": "copy:1"}, "/api/copy")
        assert (status, backend) == (200, "desk, tower")
        gone = await send(one.router.url, "DELETE", "/api/delete", {"model": "copy:1"}, [("X-Router-Backend", "desk")])
        assert (gone.status, gone.headers["x-router-backend"]) == (200, "desk")
        gone = await send(one.router.url, "DELETE", "/api/delete", {"model": "copy:1"})
        assert (gone.status, gone.headers["x-router-backend"]) == (200, "tower")
        gone = await send(one.router.url, "DELETE", "/api/delete", {"model": MIDDLE}, [("X-Router-Backend", "attic")])
        assert (gone.status, b"desk, tower" in gone.body) == (400, True)

    play(story, DESK_TOWER, CHAIN, models={"desk": (MIDDLE, SMALL), "tower": (BIG, MIDDLE)})


@pytest.mark.parametrize("fault", ["", "status", "reset"])
def test_a_deletion_is_done_on_each_backend_also_after_one_has_failed(fault):
    """A model that the first one has lost meanwhile is deleted on the second; another failure is what is answered."""

    async def story(one):
        if fault:
            one.sims["desk"].faults.add(fault, route="/api/delete", after_chunks=0, status=500, times=-1)
        else:
            await send(one.sims["desk"].url, "DELETE", "/api/delete", {"model": MIDDLE})
        gone = await send(one.router.url, "DELETE", "/api/delete", {"model": MIDDLE})
        assert gone.status == {"": 200, "status": 500, "reset": 502}[fault]
        left = (await get(one.sims["tower"].url, "/api/tags")).json()["models"]
        assert [row["name"] for row in left] == [BIG]
        again = await send(one.router.url, "DELETE", "/api/delete", {"model": MIDDLE})
        assert again.status == {"": 404, "status": 500, "reset": 502}[fault]

    play(story, DESK_TOWER, CHAIN, models={"desk": (MIDDLE, SMALL), "tower": (BIG, MIDDLE)})


def test_explain_and_state_show_every_backend():
    """`explain` ranks them with a reason each."""

    async def story(one):
        await one.ask(hello(SMALL))
        found = await one.admin("/router/explain?model=best")
        assert (found["backend"], found["chosen"]) == ("tower", BIG)
        assert [(row["backend"], row["model"]) for row in found["ranking"]] == [("tower", BIG), ("desk", MIDDLE)]
        assert "fits beside" in found["ranking"][0]["reason"]
        rows = {row["backend"]: [(one["model"], one["verdict"]) for one in row["variants"]] for row in found["ranking"]}
        assert rows == {"tower": [(BIG, "fits")], "desk": [(BIG, "too_big"), (MIDDLE, "fits")]}
        state = await one.admin("/router/state")
        assert [(row["name"], row["backend"]) for row in state["residents"]] == [(SMALL, "desk")]
        assert {row["backend"] for row in state["gpus"]} == {"desk", "tower"}
        assert (await one.admin("/readyz"))["backends"].keys() == {"desk", "tower"}

    play(story, DESK_TOWER, CHAIN)


def test_the_dashboard_shows_the_cards_of_all_backends():
    """Numbered through, and named after their backends; each model lies on the card that has it."""

    async def story(one):
        await one.ask(hello(BIG))
        await one.ask(hello(SMALL))
        board = await one.admin("/router/board")
        assert [(card["index"], card["backend"]) for card in board["cards"]] == [(0, "desk"), (1, "tower")]
        assert {(row["name"], *row["cards"]) for row in board["models"]} == {(SMALL, 0), (BIG, 1)}
        assert board["ready"]
        metrics = (await get(one.router.admin_url, "/metrics")).body.decode()
        assert 'backend="tower"' in metrics
        assert 'backend="desk"' in metrics

    play(story, DESK_TOWER, CHAIN)


def test_a_refusal_says_of_every_backend_what_is_missing():
    """In the bytes of each."""

    async def story(one):
        status, _, reply = await one.ask(hello(BIG))
        assert status == 503
        text = reply.json()["error"]
        assert text.count("too big") == 2
        assert all(f"{name}: " in text for name in ("a", "b"))

    play(story, {"a": (12288,), "b": (8192,)}, {"defaults.auto_chains": "off"})
