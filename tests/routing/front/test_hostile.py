"""Nodes that say and send what no node would: the front goes on, and says what is wrong."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.core.nodes.catalog import MOST_CATALOG_BYTES
from router.core.nodes.view import MOST_VIEW_BYTES
from tests.http.raw_upstream import answer, chunk
from tests.routing.front.stage import MIDDLE, SMALL, SSE_HEAD, FakeNode, play


class OddNode(FakeNode):
    """A node that is well but for `odd`, which scripts one of its answers."""

    def __init__(self, name, **odd):
        super().__init__(name)
        self.odd = odd

    async def serve(self, visit):
        target = visit.target.decode()
        script = self.odd.get(target.rpartition("/")[2])
        if script is None:
            await super().serve(visit)
        else:
            await script(visit)


def stream_of(*parts):
    """Return a script that sends these bytes as a stream, and then nothing more."""

    async def script(visit):
        await visit.say(SSE_HEAD)
        for part in parts:
            await visit.say(chunk(part))
        await asyncio.sleep(1e5)

    return script


def view_with(**more):
    """Return an event of a view in which some fields are other ones."""
    view = json.loads(FakeNode("odd").view().to_json())
    return b"data: " + json.dumps({**view, **more}).encode() + b"\n\n"


VIEWS = {
    "no JSON": b"data: {]\n\n",
    "no object": b"data: [1]\n\n",
    "no name": view_with(name=""),
    "a name for a header": view_with(name="a\r\nx: y"),
    "a name of bytes": view_with(name="é"),
    "too many cards": view_with(gpus=[{"uuid": "u", "total_bytes": 1, "free_bytes": 1}] * 65),
    "less than nothing free": view_with(gpus=[{"uuid": "u", "total_bytes": 1, "free_bytes": -1}]),
    "a number as text": view_with(seq="9"),
    "too long": b"data: " + b"x" * (MOST_VIEW_BYTES + 2000),
}


@pytest.mark.parametrize("what", VIEWS)
def test_a_node_whose_views_cannot_be_read_is_out(tmp_path, what):
    """It is named with the reason, and the others serve."""
    nodes = [OddNode("odd", events=stream_of(VIEWS[what])), FakeNode("b")]

    async def story(one):
        found = [(await one.ask(SMALL))[:2] for _ in range(3)]
        return set(found), (await one.admin("/router/state"))["notes"]

    found, notes = play(story, nodes, tmp_path)
    assert found == {(200, "b")}
    assert any("cannot be read" in note for note in notes)


CATALOGS = {
    "no JSON": answer(b"{]"),
    "an error": answer(b"{}", status=b"500 No"),
    "other JSON": answer(b"[]"),
    "too long": answer(b" " * (MOST_CATALOG_BYTES + 1)),
    "odd names": answer(
        json.dumps({"v": 1, "catalog_digest": "", "learned_digest": "", "models": [{"name": ""}]}).encode()
    ),
}


@pytest.mark.parametrize("what", CATALOGS)
def test_a_node_whose_models_cannot_be_read_gets_no_requests_for_models(tmp_path, what):
    """They are asked for again; the others serve."""
    nodes = [OddNode("odd", catalog=CATALOGS[what]), FakeNode("b")]

    async def story(one):
        return {(await one.ask(SMALL))[:2] for _ in range(3)}

    assert play(story, nodes, tmp_path) == {(200, "b")}


def test_views_that_come_without_a_pause_do_not_hold_the_front(tmp_path):
    """The newest of them counts."""
    flood = FakeNode("odd")

    async def stream(visit):
        await visit.say(SSE_HEAD)
        for _ in range(3000):
            await visit.say(chunk((b"data: " + flood.view().to_json() + b"\n\n") * 20))
        await asyncio.sleep(1e5)

    node = OddNode("odd", events=stream)

    async def story(one):
        return {(await one.ask(SMALL))[0] for _ in range(5)}

    assert play(story, [node, FakeNode("b")], tmp_path) == {200}


def test_a_catalog_that_is_never_the_one_of_the_views_is_not_read_all_the_time(tmp_path):
    """At most once a second: it may have 16 MiB. What it says counts nevertheless."""
    read = []

    async def catalog(visit):
        read.append(visit)
        await answer(FakeNode("odd").catalog().to_json())(visit)

    odd = OddNode("odd", catalog=catalog)
    odd.changes = {"learned_digest": "never"}

    async def story(one):
        for _ in range(50):
            odd.tell()
            await asyncio.sleep(0.1)
        return (await one.ask(SMALL))[0]

    assert play(story, [odd], tmp_path) == 200
    assert len(read) <= 7


def test_comments_that_come_without_a_pause_are_read_slowly(tmp_path):
    """They say nothing, and cost as much as views do."""
    sent = []

    async def stream(visit):
        await visit.say(SSE_HEAD)
        for number in range(3000):
            await visit.say(chunk(b": \n\n" * 16384))
            sent.append(number)

    node = OddNode("odd", events=stream)

    async def story(one):
        await asyncio.sleep(2)
        return (await one.ask(SMALL))[0]

    assert play(story, [node, FakeNode("b")], tmp_path) == 200
    assert len(sent) < 1000


def test_a_version_that_is_none_stops_nothing(tmp_path):
    """The lowest one counts, whatever a node calls its own."""
    a, b = FakeNode("a"), FakeNode("b")

    async def story(one):
        a.tell(ollama="0.²." + "9" * 100)
        await asyncio.sleep(0.3)
        reply = await one.get("/api/version")
        return reply.status, reply.json()

    assert play(story, (a, b), tmp_path) == (200, {"version": "0.12.0"})


def test_what_a_node_says_in_headers_is_bounded_and_printable(tmp_path):
    """Other headers of the router are not passed on."""

    async def reply(visit):
        long = b"r" * 5000
        await visit.say(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-router-model: caf\xe9\r\nx-router-reason: "
            + long
            + b"\r\nx-router-queue-ms: nonsense\r\nx-router-admin: yes\r\nset-cookie: a=b\r\n"
            + b"content-length: 2\r\n\r\n{}"
        )

    node = OddNode("a", generate=reply)

    async def story(one):
        _, _, reply = await one.ask(MIDDLE)
        return reply.headers

    headers = play(story, (node,), tmp_path)
    assert len(headers["x-router-reason"]) <= 640
    assert headers["x-router-queue-ms"] == "0"
    assert {"x-router-admin", "set-cookie"} & headers.keys() == set()


def test_a_node_that_declines_for_ever_ends_with_an_error(tmp_path):
    """It may not decline what is to be served somehow: then the client is told."""
    nodes = []
    for name in "ab":
        node = OddNode(name, generate=answer(b'{"error":"no"}', status=b"421 Misdirected Request"))
        nodes.append(node)

    async def story(one):
        status, _, reply = await one.ask(SMALL)
        return status, reply.json()["error"]

    status, error = play(story, nodes, tmp_path)
    assert status == 503
    assert "declined" in error
