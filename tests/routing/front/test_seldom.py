"""What seldom happens to a front: nodes without models, odd answers of theirs, and requests that need no model."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from router.core.nodes.catalog import NodeCatalog
from router.core.teams.keys import digest_of, make_key
from router.telemetry import Finished
from tests.config.keys.play import connect, send
from tests.fakes import request_bytes
from tests.http.raw_upstream import answer, chunk
from tests.routing.front.stage import BIG, SMALL, SSE_HEAD, FakeNode, fronted, model_of, play, run_virtual
from tests.routing.front.test_hostile import OddNode


def test_a_node_without_models_gets_what_nobody_has(tmp_path):
    """After the time in which models may still come: the error is Ollama's own."""
    a = FakeNode("a", models=())

    async def story(one):
        status, node, _ = await one.ask(SMALL)
        return status, node, len(a.calls)

    assert play(story, (a,), tmp_path) == (200, "a", 1)


def test_a_front_without_nodes_says_so_after_a_while(tmp_path):
    """With the reason of each; lists, the version and a request without a model have the same answer."""
    a = FakeNode("a", is_silent=True)

    async def story(one):
        status, _, reply = await one.ask(SMALL)
        others = [await one.get("/api/tags"), await one.get("/api/version")]
        others.append(await send(one.front.url, "POST", "/api/generate", {"prompt": "hi"}))
        return status, reply.json()["error"], [other.status for other in others]

    status, error, others = play(story, (a,), tmp_path)
    assert (status, others) == (503, [503, 503, 503])
    assert "no node can be used" in error


def test_a_request_without_a_model_needs_a_node_that_can_be_used(tmp_path):
    """One that drains is none."""
    a = FakeNode("a")

    async def story(one):
        await one.ask(SMALL)
        a.tell(draining=True)
        await asyncio.sleep(0.3)
        reply = await send(one.front.url, "POST", "/api/generate", {"prompt": "hi"})
        return reply.status, reply.json()["error"], (await one.get("/api/tags")).status

    status, error, tags = play(story, (a,), tmp_path)
    assert (status, tags) == (503, 503)
    assert "a: it is draining" in error


def test_a_request_without_a_model_goes_on_to_another_node(tmp_path):
    """As one with a model does, when a node fails."""
    nodes = [FakeNode(name, script=[502, 200]) for name in "ab"]

    async def story(one):
        for node in nodes[1:]:
            node.script = []
        return [(await send(one.front.url, "POST", "/api/generate", {"prompt": "hi"})).status for _ in range(4)]

    found = play(story, nodes, tmp_path, {"fleet.retry_share": 1.0})
    assert found == [200] * 4
    assert nodes[0].script != [502, 200]


def test_a_model_of_another_server_needs_the_right_to_use_it(tmp_path):
    """The front refuses it; no node is asked."""
    a = FakeNode("a")

    async def story(one):
        found = [
            await one.ask(model, headers=[("x-api-key", key)]) for model in (SMALL, "gpt-oss:120b-cloud", "un:known")
        ]
        return [status for status, _, _ in found], found[1][2].json()["error"]

    key = make_key("ops", "0123456789abcdefghijABCDEFGHIJxy")
    row = f"{{ id: ci, sha256: {digest_of(key.encode()).hex()} }}"
    (tmp_path / "ops.yaml").write_text(f"team: ops\nkeys: [{row}]\nrights: [infer]\n")
    statuses, error = play(story, (a,), tmp_path, {"teams": str(tmp_path / "*.yaml")})
    assert statuses == [200, 403, 200]
    assert "cloud is disabled" in str(error)
    assert len(a.calls) == 2


def test_what_is_no_name_of_a_model_is_for_a_node_to_refuse(tmp_path):
    """Its words are Ollama's."""
    a = FakeNode("a")

    async def story(one):
        asked = await one.ask("no name !")
        shown = await send(one.front.url, "POST", "/api/show", {"model": "no name !"})
        return asked[:2], shown.status, (await send(one.front.url, "POST", "/api/show", {})).status, a.targets

    targets = ["/api/generate", "/api/show", "/api/show"]
    assert play(story, (a,), tmp_path) == ((200, "a"), 200, 200, targets)


def test_a_wrong_option_goes_to_a_node_that_has_the_model(tmp_path):
    """Though it is loaded nowhere."""
    a, b = FakeNode("a", models=(BIG,)), FakeNode("b", models=(SMALL,))

    async def story(one):
        return (await one.ask(SMALL, options={"num_ctx": "many"}))[:2]

    assert play(story, (a, b), tmp_path) == (200, "b")


@pytest.mark.parametrize("has_names", [True, False])
def test_without_names_for_contexts_openai_clients_use_what_is_loaded(tmp_path, has_names):
    """A context of the chain could not be asked for with their form; else a node whose context is too short is none."""
    found = {}
    for holder in "ab":
        nodes = [FakeNode(name) for name in "ab"]
        next(node for node in nodes if node.name == holder).hold(SMALL)

        async def story(one):
            body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
            reply = await send(one.front.url, "POST", "/v1/chat/completions", body)
            return reply.headers["x-router-backend"]

        config = {"chains": {"chat": [{"model": SMALL, "num_ctx": 100000}]}, "defaults.derived_tags": has_names}
        found[holder] = play(story, nodes, tmp_path, config)
    assert (found == {"a": "a", "b": "b"}) is not has_names


def test_a_node_that_refuses_the_key_of_a_request_is_left_out(tmp_path):
    """The client is told that the fleet is at fault, not that it is unauthorized itself."""
    a = OddNode("a", generate=answer(b'{"error":"unauthorized"}', status=b"401 Unauthorized"))

    async def story(one):
        status, _, reply = await one.ask(SMALL)
        return status, reply.json()["error"]

    status, error = play(story, (a,), tmp_path)
    assert status == 503
    assert "a does not accept the key of this front" in error


def test_the_place_in_a_queue_of_a_node_is_passed_on(tmp_path):
    """Also by an answer that does not say why its model serves."""

    async def reply(visit):
        await visit.say(b"HTTP/1.1 200 OK\r\nx-router-position: 7\r\ncontent-length: 2\r\n\r\n{}")

    async def story(one):
        return (await one.ask(SMALL))[2].headers

    headers = play(story, (OddNode("a", generate=reply),), tmp_path)
    assert headers["x-router-position"] == "7"
    assert headers["x-router-model"] == SMALL
    assert not headers.get("x-router-reason")


@pytest.mark.parametrize(
    ("status", "why"), [(b"500 No", "it answered with status 500"), (b"404 Not Found", "it is not a node (404)")]
)
def test_a_node_that_refuses_its_stream_is_out_with_the_status(tmp_path, status, why):
    """The others serve."""
    nodes = [OddNode("odd", events=answer(b"{}", status=status)), FakeNode("b")]

    async def story(one):
        return (await one.ask(SMALL))[:2], (await one.admin("/router/state"))["notes"]

    found, notes = play(story, nodes, tmp_path)
    assert found == (200, "b")
    assert any(why in note for note in notes)


def test_a_stream_that_a_node_closes_is_opened_again(tmp_path):
    """It is used in the meantime. An event may come in pieces."""
    opened = []

    async def stream(visit):
        opened.append(visit)
        event = b"data: " + node.view().to_json() + b"\n\n"
        await visit.say(SSE_HEAD)
        for part in (event[:20], event[20:]):
            await visit.say(b"%x\r\n%b\r\n" % (len(part), part))
            await asyncio.sleep(0.1)
        await visit.say(b"0\r\n\r\n")

    node = OddNode("a", events=stream)

    async def story(one):
        await asyncio.sleep(3)
        return (await one.ask(SMALL))[:2]

    assert play(story, (node,), tmp_path) == (200, "a")
    assert len(opened) > 2


def test_a_view_that_is_not_newer_is_not_taken(tmp_path):
    """As one that was held up on its way."""
    a = FakeNode("a")

    async def story(one):
        await one.ask(SMALL)
        a.tell(seq=0, draining=True)
        await asyncio.sleep(0.5)
        return (await one.ask(SMALL))[:2]

    assert play(story, (a,), tmp_path) == (200, "a")


class Remote(FakeNode):
    """A node whose model runs on another server."""

    def catalog(self):
        return NodeCatalog.of((model_of(SMALL), msgspec.structs.replace(model_of(BIG), is_remote=True)))


def test_a_name_that_stands_for_a_model_of_another_server_needs_the_same_right(tmp_path):
    """Whatever it is called; the node that has it gets the request of who may use it."""
    a = Remote("a")

    async def story(one):
        found = [await one.ask(BIG, headers=[("x-api-key", key)]) for key in keys]
        return [reply.status for _, _, reply in found]

    keys = [make_key(name, "0123456789abcdefghijABCDEFGHIJxy") for name in ("ops", "boss")]
    for key, name, more in zip(keys, ("ops", "boss"), ("", "models: {allow: ['*', '*:cloud']}"), strict=True):
        row = f"{{ id: ci, sha256: {digest_of(key.encode()).hex()} }}"
        (tmp_path / f"{name}.yaml").write_text(f"team: {name}\nkeys: [{row}]\nrights: [infer]\n{more}\n")
    assert play(story, (a,), tmp_path, {"teams": str(tmp_path / "*.yaml")}) == [403, 200]
    assert len(a.calls) == 1


class Library(FakeNode):
    """A node with many models."""

    def catalog(self):
        first = model_of(SMALL)
        more = [
            msgspec.structs.replace(first, name=f"m{at}:1b", digest=f"d{at}", weights=f"sha256-m{at}")
            for at in range(300)
        ]
        return NodeCatalog.of((first, *more))


@pytest.mark.parametrize(
    ("count", "part"), [(64, "{:02}" + "m" * 78), (63, "h" * 350 + "/" + "n" * 80 + "/{:02}m"), (200, "{}")]
)
def test_a_long_chain_of_long_names_is_served_by_its_last_variant(tmp_path, count, part):
    """A node is told of as many as it takes: the first one, and the last ones."""
    a = FakeNode("a", models=(SMALL,))
    names = [f"{part.format(number)}:{'t' * 80}" for number in range(count)]

    async def story(one):
        found = [(await one.ask("chat"))[2]]
        a.script = ["decline", 200]
        found.append((await one.ask("chat"))[2])
        return [(reply.status, reply.headers["x-router-model"]) for reply in found]

    assert play(story, (a,), tmp_path, {"chains": {"chat": [*names, SMALL]}}) == [(200, SMALL)] * 2
    told = [[one.model for one in call.chain] for call in a.calls]
    assert [(chain[0], chain[-1]) for chain in told] == [(names[0], SMALL)] * 3
    assert {len(chain) for chain in told} == {min(count + 1, 64)}


def test_all_of_a_long_catalog_can_be_asked_for(tmp_path):
    """Though it is read in a thread."""
    a = Library("a")

    async def story(one):
        return (await one.ask("m299:1b"))[:2]

    assert play(story, (a,), tmp_path) == (200, "a")
    assert [one.model for call in a.calls if call is not None for one in call.chain] == ["m299:1b"]


def test_a_fallback_says_the_same_again_within_a_second(tmp_path, monkeypatch):
    """Also where much is asked for, so that what was known is forgotten."""
    a = FakeNode("a", gib=12)

    async def story(one):
        found = [(await one.ask("chat"))[2].headers["x-router-reason"] for _ in range(2)]
        monkeypatch.setattr("router.routing.front.choosing.MOST_WANTED", 1)
        for context in (9000, 20000, 30000):
            reply = (await one.ask("chat", options={"num_ctx": context}))[2]
            found.append(reply.headers["x-router-reason"])
        return found

    config = {"chains": {"chat": [BIG, SMALL]}}
    assert play(story, (a,), tmp_path, config) == [f"fallback: {BIG} too big on every backend"] * 5


def test_what_nobody_waits_for_does_not_hold_a_stop(tmp_path):
    """A model is unloaded on all nodes that hold it; one of them does not answer."""
    nodes = [FakeNode(name, takes_s=1000) for name in "ab"]
    for node in nodes:
        node.hold(SMALL)

    async def run():
        async with fronted({node.name: node for node in nodes}, tmp_path) as one:
            raw = await connect(one.front.url)
            body = json.dumps({"model": SMALL, "keep_alive": 0, "stream": False})
            await raw.send(request_bytes("POST", "/api/generate", body))
            await asyncio.sleep(1)
            at_work = [node.at_work for node in nodes]
            raw.close()
            await asyncio.sleep(0.5)
            began_s = asyncio.get_running_loop().time()
        return at_work, asyncio.get_running_loop().time() - began_s

    at_work, took_s = run_virtual(run())
    assert at_work == [1, 1]
    assert took_s < 100


def test_more_nodes_than_are_remembered_report_their_requests(tmp_path, monkeypatch):
    """By whatever node they were served."""
    monkeypatch.setattr("router.routing.front.front.MOST_ENDS", 1)
    a, b = FakeNode("a", models=(BIG,)), FakeNode("b", models=(SMALL,))

    async def story(one):
        found = [(await one.ask(model))[:2] for model in (BIG, SMALL, BIG)]
        return found, [event.backend for event in one.of(Finished)]

    assert play(story, (a, b), tmp_path) == ([(200, "a"), (200, "b"), (200, "a")], ["a", "b", "a"])


def test_models_that_arrive_when_their_node_is_out_do_not_bring_it_back(tmp_path):
    """Only what it says of itself does."""
    go = asyncio.Event()

    async def stream(visit):
        await visit.say(SSE_HEAD)
        if not go.is_set():
            await visit.say(chunk(b"data: " + odd.view().to_json() + b"\n\n"))
        await go.wait()
        await visit.say(chunk(b"data: {]\n\n"))

    async def catalog(visit):
        await go.wait()
        await asyncio.sleep(1)
        await answer(odd.catalog().to_json())(visit)

    odd = OddNode("odd", events=stream, catalog=catalog)

    async def story(one):
        members = one.front.router.routes.members
        await asyncio.sleep(1)
        node = members.named("odd")
        go.set()
        await asyncio.sleep(3)
        return len(node.models), node.why_out, [one.name for one in members.usable()]

    models, why, usable = play(story, [odd, FakeNode("b")], tmp_path)
    assert models == 3
    assert "cannot be read" in why
    assert usable == ["b"]
