"""Fronts and nodes together: loads, spills, and what breaks with what (N1, N2, N3)."""

from __future__ import annotations

import asyncio
import itertools
import random

from router.cli.explain import show as show_explained
from router.cli.ps import show as show_ps
from router.cli.top import frame
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, get, hello, send
from tests.routing.front.whole import play

TWO = {"a": (24564,), "b": (24564,)}
THREE = {**TWO, "c": (24564,)}


def test_a_cold_model_is_loaded_once_whichever_front_is_asked_n1(tmp_path):
    """Three fronts are asked at the same time, again and again with the model gone."""

    async def story(one):
        counts = []
        for _ in range(30):
            before = len(one.loads)
            found = await asyncio.gather(*(one.ask(hello(SMALL), front=front) for front in range(3)))
            assert {status for status, _, _ in found} == {200}
            counts.append(len(one.loads) - before)
            await one.ask({"model": SMALL, "keep_alive": 0})
            await asyncio.sleep(3)
        return set(counts)

    assert play(story, THREE, tmp_path, fronts=3) == {1}


def test_models_that_do_not_fit_together_never_spill_n2(tmp_path):
    """Both are wanted of one node by three fronts at once: they take turns, and none is loaded twice at a time (H4)."""

    async def story(one):
        dice = random.Random(3)
        wanted = [BIG, OTHER] * 12
        dice.shuffle(wanted)
        jobs = [one.ask(hello(model), front=at % 3) for at, model in enumerate(wanted)]
        found = await asyncio.gather(*jobs)
        loads = [model for _, model in one.loads]
        doubled = any(first == second for first, second in itertools.pairwise(loads))
        return {status for status, _, _ in found}, one.spilled, doubled

    assert play(story, {"a": (24564,)}, tmp_path, fronts=3) == ({200}, [], False)


def test_only_the_streams_of_a_node_that_died_break_n3(tmp_path):
    """What it had not begun to answer is served by others, and the others' streams go on."""

    async def story(one):
        for name in TWO:  # the model on both
            await one.nodes[name].ask({"model": MIDDLE, "prompt": "hi"})
        await asyncio.sleep(1.5)
        body = {"model": MIDDLE, "prompt": "[[tokens=300]] hi", "stream": True}
        jobs = [asyncio.create_task(one.ask(body, front=at % 2)) for at in range(20)]
        await asyncio.sleep(1.0)
        one.proxies["a"].break_("refuse")
        found = await asyncio.gather(*jobs)
        done = [reply.body.rstrip().endswith(b"}") and b'"done":true' in reply.body for _, _, reply in found]
        broken = {node for (_, node, _), whole in zip(found, done, strict=True) if not whole}
        statuses = {status for status, _, _ in found}
        late = [await one.ask(hello(MIDDLE), front=at % 2) for at in range(4)]
        return broken, statuses, {(status, node) for status, node, _ in late}

    broken, statuses, late = play(story, TWO, tmp_path, fronts=2)
    assert broken <= {"a"}
    assert statuses == {200}
    assert late == {(200, "b")}


def test_a_node_that_stops_is_left_in_time(tmp_path):
    """Its requests end, and no new one is refused."""

    async def story(one):
        for name in TWO:
            await one.nodes[name].ask({"model": SMALL, "prompt": "hi"})
        await asyncio.sleep(1.5)
        node = one.nodes["a"].router.router.node
        node.state.drain(is_draining=True)
        await asyncio.sleep(0.3)
        found = [await one.ask(hello(SMALL)) for _ in range(6)]
        return {(status, name) for status, name, _ in found}

    assert play(story, TWO, tmp_path) == {(200, "b")}


def test_lists_are_those_of_all_nodes(tmp_path):
    """Each model once; what is loaded with its node; and a model is shown by a node that has it."""

    async def story(one):
        await one.ask(hello(SMALL))
        tags = [row["name"] for row in (await one.get("/api/tags")).json()["models"]]
        listed = [row["id"] for row in (await one.get("/v1/models")).json()["data"]]
        loaded = {(row["name"], row["backend"]) for row in (await one.get("/api/ps")).json()["models"]}
        shown = await one.ask({"model": MIDDLE}, "/api/show")
        version = (await one.get("/api/version")).json()
        return sorted(tags), sorted(listed), loaded, shown[:2], "version" in version

    models = {"a": (SMALL,), "b": (SMALL, MIDDLE)}
    tags, listed, loaded, shown, has_version = play(story, TWO, tmp_path, models=models)
    assert tags == listed == sorted([SMALL, MIDDLE])
    assert len(loaded) == 1
    assert {name for name, _ in loaded} == {SMALL}
    assert (shown, has_version) == ((200, "b"), True)


def test_a_deletion_goes_to_each_node_that_has_the_model_and_a_named_one_gets_a_pull(tmp_path):
    """As `X-Router-Backend` says."""

    async def story(one):
        gone = await one.ask({"model": MIDDLE}, "/api/delete", method="DELETE")
        names = [row["name"] for row in (await one.get("/api/tags")).json()["models"]]
        named = await one.ask({"model": SMALL}, "/api/show", headers=[("X-Router-Backend", "b")])
        wrong = await one.ask({"model": SMALL}, "/api/copy", headers=[("X-Router-Backend", "nowhere")])
        return gone[0], gone[2].headers.get("x-router-backend"), names, named[0], wrong[0]

    config = {"insecure_no_auth": True, "defaults.auto_chains": "off"}
    status, where, names, shown, wrong = play(story, TWO, tmp_path, models=(SMALL, MIDDLE), config=config)
    assert (status, where, names, shown, wrong) == (200, "a, b", [SMALL], 200, 400)


def test_explain_shows_each_node_with_a_reason(tmp_path):
    """The best first; ps and readiness speak of nodes."""

    async def story(one):
        await one.ask(hello(SMALL))
        await asyncio.sleep(1.2)
        found = await one.admin(f"/router/explain?model={SMALL}")
        state, ready = await one.admin("/router/state"), await one.admin("/readyz")
        board = await one.admin("/router/board")
        return found, state, ready, board

    found, state, ready, board = play(story, {"a": (24564,), "b": (4096,)}, tmp_path)
    assert found["chosen"] == SMALL
    assert found["ranking"][0]["backend"] == found["backend"]
    assert all(row["reason"] for row in found["ranking"])
    assert {row["backend"] for row in state["gpus"]} == {"a", "b"}
    assert [row["name"] for row in state["residents"]] == [SMALL]
    assert ready["ready"] is True
    assert ready["nodes"] == {"found": 2, "usable": 2}
    assert [row["name"] for row in board["models"]] == [SMALL]
    assert len(board["cards"]) == 2


def test_metrics_count_nodes(tmp_path):
    """Those found, and those that can be used."""

    async def story(one):
        one.proxies["a"].break_("refuse")
        await asyncio.sleep(2)
        return (await get(one.fronts[0].admin_url, "/metrics")).body.decode()

    text = play(story, TWO, tmp_path)
    assert 'ollama_router_nodes{state="found"} 2.0' in text
    assert 'ollama_router_nodes{state="usable"} 1.0' in text


def test_the_commands_show_a_front(tmp_path, capsys):
    """`ps`, `top` and `explain` print what its nodes have told."""

    async def story(one):
        await one.ask(hello(SMALL))
        await asyncio.sleep(1.2)
        return [await one.admin(path) for path in ("/router/state", "/router/board", f"/router/explain?model={SMALL}")]

    state, board, found = play(story, TWO, tmp_path)
    show_ps(state)
    show_explained(found)
    print(frame(board, [], 120))
    printed = capsys.readouterr().out
    assert printed.count(SMALL) >= 3
    assert "backends, the best first" in printed


def test_what_only_an_owner_can_do_is_refused_by_a_front(tmp_path):
    """It says who can."""

    async def story(one):
        replies = [
            await send(one.fronts[0].admin_url, "POST", target, headers=[("X-Router-Admin", "1")])
            for target in (f"/router/unload?model={SMALL}", f"/router/keep?model={SMALL}", "/router/forget")
        ]
        return {(reply.status, "node" in reply.body.decode()) for reply in replies}

    assert play(story, {"a": (24564,)}, tmp_path) == {(400, True)}
