"""The ways of a request through a front: clients that leave, connections, what needs no decision, breakers, reloads."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import contextmanager

import pytest

from router.config import load_config, prepare
from router.telemetry import Finished
from tests.config.keys.play import connect, send
from tests.fakes import request_bytes
from tests.routing.front.stage import BIG, MIDDLE, SMALL, FakeNode, fronted, play, run_virtual

ASK = request_bytes("POST", "/api/generate", json.dumps({"model": SMALL, "prompt": "hi", "stream": False}))


def under_way(one):
    """How many requests the front counts on each of its nodes."""
    own = one.front.router.routes.choosing._choice._own
    return {name: own(name, "") for name in one.nodes}


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_client_that_leaves_takes_its_request_off_its_node_a1(tmp_path, is_slow):
    """With a task of its own and without; nothing is counted any more."""
    a = FakeNode("a", takes_s=30)
    a.hold(SMALL)
    headers = [("X-Router-Strict", "false")] if is_slow else []  # which takes the general path

    async def story(one):
        if not is_slow:
            one.nodes["a"].takes_s = 0
            await one.ask(SMALL)  # so that a connection is free
            one.nodes["a"].takes_s = 30
        raw = await connect(one.front.url)
        body = json.dumps({"model": SMALL, "prompt": "hi", "stream": False})
        await raw.send(request_bytes("POST", "/api/generate", body, headers))
        await asyncio.sleep(1)
        before, opened = under_way(one), a.upstream.open_connections
        raw.close()
        await asyncio.sleep(1)
        return before, under_way(one), opened > 0

    assert play(story, (a,), tmp_path) == ({"a": 1}, {"a": 0}, True)


def test_a_client_that_leaves_while_the_front_waits_for_a_node(tmp_path):
    """It is reported as such, and nothing is left."""
    a = FakeNode("a", is_silent=True)

    async def story(one):
        raw = await connect(one.front.url)
        await raw.send(ASK)
        await asyncio.sleep(0.3)
        raw.close()
        await asyncio.sleep(0.2)
        return [event.outcome for event in one.of(Finished)]

    assert play(story, (a,), tmp_path) == ["client_gone"]


def test_a_node_that_refuses_connections_costs_no_request(tmp_path):
    """It is left out until its stream is there again."""
    nodes = [FakeNode("a"), FakeNode("b")]
    nodes[0].hold(SMALL)

    async def run():
        async with fronted({node.name: node for node in nodes}, tmp_path, through={"a": b""}) as one:
            one.proxies["a"].close()
            return [(await one.ask(SMALL))[:2] for _ in range(3)]

    assert run_virtual(run()) == [(200, "b")] * 3


def test_more_requests_than_connections_wait_for_one(tmp_path):
    """All are answered."""
    a = FakeNode("a", takes_s=0.5)
    a.hold(SMALL)

    async def story(one):
        found = await asyncio.gather(*(one.ask(SMALL) for _ in range(12)))
        return {status for status, _, _ in found}, under_way(one)

    assert play(story, (a,), tmp_path, {"limits.pool": 3}) == ({200}, {"a": 0})


def test_what_needs_no_decision_goes_to_a_node(tmp_path):
    """A body without a model, a wrong option, and a model of another server where that is allowed."""
    a, b = FakeNode("a"), FakeNode("b")
    b.hold(SMALL)

    async def story(one):
        no_model = await send(one.front.url, "POST", "/api/generate", {"prompt": "hi"})
        odd_option = await one.ask(SMALL, options={"num_ctx": "many"})
        cloud = await one.ask("gpt-oss:120b-cloud")
        return no_model.status, odd_option[:2], cloud[0]

    no_model, odd_option, cloud = play(story, (a, b), tmp_path, {"insecure_no_auth": True})
    assert (no_model, odd_option, cloud) == (200, (200, "b"), 200)
    (final,) = [call for call in b.calls if call is not None]
    assert final.is_final


def test_a_node_that_fails_again_and_again_is_left_out(tmp_path):
    """Its holders' requests go to others, until a trial succeeds."""
    a, b = FakeNode("a", status=502), FakeNode("b")
    a.hold(SMALL)

    async def story(one):
        first = [(await one.ask(SMALL))[:2] for _ in range(6)]
        count = len(a.calls)
        later = [(await one.ask(SMALL))[:2] for _ in range(4)]
        return set(first + later), count, len(a.calls) - count

    found, count, more = play(story, (a, b), tmp_path, {"fleet.breaker_failures": 3, "fleet.retry_share": 1.0})
    assert found == {(200, "b")}
    assert (count, more) == (3, 0)


def test_a_reload_puts_other_chains_in_force(tmp_path):
    """For the requests that come then; nodes and connections stay."""
    a = FakeNode("a")

    async def story(one):
        before = (await one.ask("chat"))[2].headers["x-router-model"]
        config = one.front.config.model_copy(
            update={"chains": load_config(env={}, options={"chains": {"chat": [SMALL]}}).chains}
        )
        one.front.take_over(prepare(config))
        return before, (await one.ask("chat"))[2].headers["x-router-model"]

    assert play(story, (a,), tmp_path, {"chains": {"chat": [MIDDLE]}}) == (MIDDLE, SMALL)


def test_names_of_chains_are_shown_and_cannot_be_deleted(tmp_path):
    """As with Ollamas of its own: shown by the variant that would serve; unknown names are Ollama's own 404."""
    a = FakeNode("a")
    a.hold(SMALL)

    async def story(one):
        url = one.front.url
        shown = await send(url, "POST", "/api/show", {"model": "chat"})
        openai = await send(url, "GET", "/v1/models/chat")
        deleted = await send(url, "DELETE", "/api/delete", {"model": "chat"})
        unknown = await send(url, "POST", "/api/show", {"model": "nobody:has"})
        listed = [row["name"] for row in (await one.get("/api/tags")).json()["models"]]
        version = (await one.get("/api/version")).json()["version"]
        none = await send(url, "POST", "/api/show", {"model": "empty"})
        return shown.status, openai.status, deleted.status, unknown.status, none.status, listed, version

    chains = {"chat": [BIG, SMALL], "empty": ["not:there"]}
    found = play(story, (a,), tmp_path, {"chains": chains, "insecure_no_auth": True})
    assert found == (200, 200, 403, 200, 404, [BIG, MIDDLE, SMALL, "chat:latest"], "0.12.0")


def test_models_are_managed_where_they_are_named(tmp_path):
    """A pull by `X-Router-Backend`; a new one where the biggest cards are; a creation where its files went."""
    a, b = FakeNode("a", gib=12), FakeNode("b", gib=24)
    digest = "sha256:" + "0" * 64

    async def story(one):
        url = one.front.url
        for headers in ([], [("X-Router-Backend", "a")]):
            await send(url, "POST", "/api/pull", {"model": "new:1b"}, headers)
        await send(url, "POST", f"/api/blobs/{digest}", headers=[("X-Router-Backend", "a")])
        await send(url, "POST", "/api/create", {"model": "mine", "files": {"x.gguf": digest}})
        return a.targets, b.targets

    blob = f"/api/blobs/{digest}"
    assert play(story, (a, b), tmp_path, {"insecure_no_auth": True}) == (
        ["/api/pull", blob, "/api/create"],
        ["/api/pull"],
    )


def test_a_model_that_was_pulled_can_be_used_at_once(tmp_path):
    """The front waits for the list of models of the node, which is about to change."""
    a = FakeNode("a", models=(SMALL,))

    async def story(one):
        await send(one.front.url, "POST", "/api/pull", {"model": MIDDLE})

        async def arrive():
            await asyncio.sleep(0.3)
            a.models = (SMALL, MIDDLE)
            a.tell()

        arrives = asyncio.create_task(arrive())
        status, node, _ = await one.ask(MIDDLE)
        await arrives
        return status, node, [one.model for one in a.calls[-1].chain]

    assert play(story, (a,), tmp_path, {"insecure_no_auth": True}) == (200, "a", [MIDDLE])


def test_a_node_that_takes_no_connection_any_more_costs_no_request(tmp_path):
    """As one without power: nothing was sent there, so the next one gets it once the time to connect is over."""
    nodes = [FakeNode("a"), FakeNode("b")]
    nodes[0].hold(SMALL)

    async def run():
        async with fronted({node.name: node for node in nodes}, tmp_path, through={"a": b""}) as one:
            with swallowed(one.proxies["a"]):
                status, node, reply = await one.ask(SMALL)
                return status, node, reply.headers["x-router-attempts"]

    assert run_virtual(run()) == (200, "b", "2")


def test_a_request_whose_kept_connection_its_node_closed_as_it_came_is_sent_once_more(tmp_path):
    """As a node does that reloads: there is no other one, and nothing of it is seen by the client."""
    a = FakeNode("a")

    async def story(one):
        await one.ask(SMALL)
        a.script = ["close", 200]
        status, node, reply = await one.ask(SMALL)
        return status, node, reply.headers.get("x-router-attempts"), len(a.calls)

    assert play(story, (a,), tmp_path) == (200, "a", None, 3)


def test_a_node_that_closes_new_connections_too_is_tried_twice_by_a_request(tmp_path):
    """Then it is the turn of the next one, where there is one."""
    nodes = [FakeNode("a"), FakeNode("b")]
    nodes[0].hold(SMALL)

    async def story(one):
        assert (await one.ask(SMALL))[:2] == (200, "a")
        nodes[0].script = ["close"] * 9
        return (await one.ask(SMALL))[:2], one.calls()

    assert play(story, nodes, tmp_path) == ((200, "b"), {"a": 3, "b": 1})


@pytest.mark.parametrize("others", ["b", ""])
def test_a_request_that_waits_for_a_connection_goes_on_when_its_node_is_taken_away(tmp_path, others):
    """At once, whether a connection is being opened or all of them are in use; nothing was sent there."""
    nodes = {name: FakeNode(name, takes_s=20) for name in ("a", *others)}
    nodes["a"].hold(SMALL)

    async def run():
        async with fronted(nodes, tmp_path, {"limits.pool": 1}) as one:
            asked = [asyncio.create_task(one.ask(SMALL)) for _ in range(2)]
            await asyncio.sleep(1)
            left = {node.url: node.url for name, node in nodes.items() if name != "a"}
            began_s = asyncio.get_running_loop().time()
            one.front.router.routes.members.take(left)
            done, _ = await asyncio.wait(asked)
            found = sorted((status, node) for status, node, _ in (task.result() for task in done))
            return found, asyncio.get_running_loop().time() - began_s, len(nodes["a"].calls)

    found, took_s, sent = run_virtual(run())
    assert found == ([(200, "a"), (200, "b")] if others else [(200, "a"), (503, "")])
    assert took_s < 25
    assert sent == 1


def test_a_request_goes_on_when_its_node_is_taken_away_before_it_is_reached(tmp_path):
    """While a connection to it is being opened."""
    a, b = FakeNode("a"), FakeNode("b")
    a.hold(SMALL)

    async def run():
        async with fronted({"a": a, "b": b}, tmp_path, through={"a": b""}) as one:
            with swallowed(one.proxies["a"]):
                asked = asyncio.create_task(one.ask(SMALL))
                await asyncio.sleep(0.1)
                one.front.router.routes.members.take({b.url: b.url})
                status, node, _ = await asked
                return status, node, [node.name for node in one.front.router.routes.members.all()]

    assert run_virtual(run()) == (200, "b", ["b"])


@contextmanager
def swallowed(proxy):
    """Let the kernel drop what wants to connect to a proxy; what is open stays open, and silent."""
    proxy.break_("hang")
    proxy.server.close()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", proxy.port))
    sock.listen(0)
    filling = [socket.socket() for _ in range(4)]
    for one in filling:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", proxy.port))
    try:
        yield
    finally:
        for one in (*filling, sock):
            one.close()
