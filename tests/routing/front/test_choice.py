"""Where a front sends requests, and what it tells the nodes."""

from __future__ import annotations

import asyncio

from tests.routing.front.stage import BIG, MIDDLE, SMALL, FakeNode, play

CHAIN = {"chains": {"chat": [BIG, MIDDLE, SMALL]}}


def test_a_request_goes_to_the_node_that_holds_its_model(tmp_path):
    """The node is told the chain up to the variant, and the answer says which node it is from."""
    a, b = FakeNode("a"), FakeNode("b")
    b.hold(SMALL)

    async def story(one):
        status, node, reply = await one.ask(SMALL)
        return status, node, reply.json()["model"], reply.headers["x-router-model"], one.calls()

    assert play(story, (a, b), tmp_path) == (200, "b", SMALL, SMALL, {"b": 1})
    (call,) = b.calls
    assert call is not None
    assert (call.hop, [one.model for one in call.chain], call.is_final) == (1, [SMALL], False)


def test_a_bigger_variant_is_loaded_before_a_smaller_one_is_used_elsewhere(tmp_path):
    """Locality is worth less than the model that was asked for."""
    a, b = FakeNode("a"), FakeNode("b", gib=8)
    b.hold(SMALL)

    async def story(one):
        return (await one.ask("chat"))[:2]

    assert play(story, (a, b), tmp_path, CHAIN) == (200, "a")
    (call,) = a.calls
    assert call is not None
    assert [one.model for one in call.chain] == [BIG]


def test_a_node_that_holds_a_smaller_variant_may_keep_to_it(tmp_path):
    """Whether the bigger one takes its place is for the node to say, by the chain's rules for that."""
    a = FakeNode("a")
    a.hold(SMALL)

    async def story(one):
        return (await one.ask("chat"))[:2]

    assert play(story, (a,), tmp_path, CHAIN) == (200, "a")
    (call,) = a.calls
    assert call is not None
    assert [one.model for one in call.chain] == [BIG, MIDDLE, SMALL]
    assert not call.is_final


def test_all_fronts_agree_where_a_cold_model_goes(tmp_path):
    """Without a word between them."""
    nodes = [FakeNode(name) for name in "abcde"]

    async def story(one):
        return {(await one.ask(MIDDLE, front=front))[1] for front in range(3)}

    assert len(play(story, nodes, tmp_path, fronts=3)) == 1


def test_a_conversation_stays_on_its_node(tmp_path):
    """Other conversations go elsewhere."""
    nodes = [FakeNode(name) for name in "abcd"]
    for node in nodes:
        node.hold(SMALL)

    async def story(one):
        same = {(await one.chat("the same talk", front=at % 2))[1] for at in range(6)}
        others = {(await one.chat(f"talk {at}"))[1] for at in range(12)}
        return len(same), len(others) > 1

    assert play(story, nodes, tmp_path, fronts=2) == (1, True)


def test_the_next_node_is_asked_when_one_declines(tmp_path):
    """It has changed nothing by then. The answer says how many were asked."""
    nodes = [FakeNode(name, declines=1) for name in "ab"] + [FakeNode("c")]
    for node in nodes:
        node.hold(SMALL)

    async def story(one):
        status, _, reply = await one.ask(SMALL)
        return status, sum(one.calls().values()) == int(reply.headers.get("x-router-attempts", "1"))

    assert play(story, nodes, tmp_path) == (200, True)


def test_after_three_nodes_one_does_what_it_can(tmp_path):
    """It gets the whole chain, and may not decline."""
    nodes = [FakeNode(name, declines=9) for name in "abcd"]

    async def story(one):
        return (await one.ask("chat"))[0]

    assert play(story, nodes, tmp_path, CHAIN) == 200
    calls = [call for node in nodes for call in node.calls if call is not None]
    assert len(calls) == 4
    assert [[one.model for one in call.chain] for call in calls if call.is_final] == [[BIG, MIDDLE, SMALL]]


def test_nothing_fits_is_for_a_node_to_say(tmp_path):
    """By the rule of the client, where it has one."""
    a = FakeNode("a", gib=2, status=503)

    async def story(one):
        return (await one.ask(BIG, headers=[("X-Router-Nothing-Fits", "wait")]))[0]

    assert play(story, (a,), tmp_path, {"defaults.auto_chains": "off"}) == 503
    (call,) = a.calls
    assert call is not None
    assert (call.is_final, call.rules.nothing_fits) == (True, "wait")


def test_a_strict_request_has_a_chain_of_one(tmp_path):
    """The node need not know why."""
    a = FakeNode("a")

    async def story(one):
        return (await one.ask("chat", headers=[("X-Router-Strict", "true")]))[0]

    assert play(story, (a,), tmp_path, CHAIN) == 200
    (call,) = a.calls
    assert call is not None
    assert [one.model for one in call.chain] == [BIG]


def test_a_call_header_of_a_client_goes_no_further_n6(tmp_path):
    """Only the front's own is sent, with the key of the fleet in place of the client's."""
    a = FakeNode("a")
    a.hold(SMALL)

    async def story(one):
        forged = [("X-Router-Call", "eyJ0ZWFtIjoiYWRtaW4ifQ=="), ("Authorization", "Bearer of-the-client")]
        return (await one.ask(SMALL, headers=forged))[0]

    assert play(story, (a,), tmp_path) == 200
    (head,) = a.heads
    assert head.lower().count(b"x-router-call:") == 1
    assert b"eyJ0ZWFtIjoiYWRtaW4ifQ" not in head
    assert b"of-the-client" not in head


def test_an_unknown_model_is_answered_by_a_node(tmp_path):
    """The error is Ollama's own."""
    a = FakeNode("a", status=404)

    async def story(one):
        return (await one.ask("nobody:has"))[0]

    assert play(story, (a,), tmp_path) == 404
    assert a.calls == [None]


def test_a_copy_is_loaded_where_waiting_is_dearer(tmp_path):
    """Only then."""

    def asked(wait_s):
        a, b = FakeNode("a"), FakeNode("b")
        a.hold(SMALL, wait_s=wait_s, waiting=3, in_flight=1)

        async def story(one):
            return (await one.ask(SMALL))[1]

        return play(story, (a, b), tmp_path)

    assert (asked(1.0), asked(30.0)) == ("a", "b")


def test_a_draining_node_gets_nothing_more(tmp_path):
    """At once when it says so."""
    a, b = FakeNode("a"), FakeNode("b")
    a.hold(SMALL)

    async def story(one):
        before = (await one.ask(SMALL))[1]
        a.tell(draining=True)
        await asyncio.sleep(0.1)
        return before, (await one.ask(SMALL))[1]

    assert play(story, (a, b), tmp_path) == ("a", "b")


def test_what_is_under_way_counts_before_a_node_tells_it(tmp_path):
    """A burst is spread over the holders, though no view has come since it began."""
    a, b = FakeNode("a", takes_s=0.5), FakeNode("b", takes_s=0.5)
    a.hold(SMALL)
    b.hold(SMALL)

    async def story(one):
        found = await asyncio.gather(*(one.ask(SMALL) for _ in range(8)))
        return {name: sum(node == name for _, node, _ in found) for name in "ab"}

    assert play(story, (a, b), tmp_path) == {"a": 4, "b": 4}


def test_an_unload_goes_to_every_node_that_holds_the_model(tmp_path):
    """One answer stands for all."""
    nodes = [FakeNode(name) for name in "abc"]
    for node in nodes[:2]:
        node.hold(SMALL)

    async def story(one):
        status, _, _ = await one.ask(SMALL, keep_alive=0, prompt="")
        await asyncio.sleep(0.5)
        return status, one.calls()

    assert play(story, nodes, tmp_path) == (200, {"a": 1, "b": 1})


def test_nodes_that_decline_are_no_failures(tmp_path):
    """A request that two have declined and that fails at the third still has its retry."""
    script = ["decline", "decline", 502, 200]
    nodes = [FakeNode(name, script=script) for name in "abcd"]

    async def story(one):
        status, _, reply = await one.ask(SMALL)
        return status, reply.headers["x-router-attempts"]

    assert play(story, nodes, tmp_path, {"fleet.retries": 1}) == (200, "4")
