"""What a front may send by a fault or on purpose: a node answers it, keeps little of it, and goes on."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admin.scrape import MOST_TEAMS, Scrape
from router.api.fronts import Fronts
from router.core.nodes.call import NodeCall
from router.core.nodes.form import UnreadableForm
from router.core.ollama.names import is_name
from router.core.teams.keys import digest_of
from router.errors import BadRequest, Misdirected
from router.http.server.heads import Head
from tests.config.keys.play import BIG, MIDDLE, OTHER, SMALL, get, hello
from tests.fakes import request_bytes
from tests.routing.nodes.stage import KEY, call_for, headers_of, play
from tests.routing.nodes.test_calls import BOOK, Quiet

whole = msgspec.to_builtins(call_for(SMALL))
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*whole, "model"]), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=300) | st.dictionaries(st.sampled_from([*whole]), junk).map(lambda more: {**whole, **more}))
def test_any_call_is_read_refused_or_declined(value):
    """Nothing else comes of it, whatever its bytes are."""
    data = value if isinstance(value, bytes) else base64.urlsafe_b64encode(json.dumps(value).encode())
    fronts = Fronts((digest_of(KEY.encode()),), Quiet(), lambda: BOOK)
    headers = [(b"authorization", b"Bearer " + KEY.encode()), (b"x-router-call", data)]
    try:
        call = fronts.call_of(Head("POST", b"/api/chat", b"/api/chat", headers, dict(headers)))
    except (BadRequest, Misdirected):
        return
    assert call is not None
    assert all(is_name(variant.model) for variant in call.rules.rule_for(call.told.name).variants)


@given(st.binary(max_size=200))
def test_any_header_is_a_call_or_unreadable(value):
    with suppress(UnreadableForm):
        assert isinstance(NodeCall.from_header(value), NodeCall)


def test_a_thousand_teams_of_fronts_pass_through_and_the_node_serves_on():
    """Their names come from outside: none of them has a file."""

    async def story(node):
        for number in range(60):
            asked = [node.ask(call_for(SMALL, team=f"t{number}-{at}"), hello(SMALL)) for at in range(20)]
            assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
        series = [
            line for line in (await get(node.router.admin_url, "/metrics")).body.splitlines() if b'team="t' in line
        ]
        return len(series) < 500, (await node.view()).is_up

    assert play(story) == (True, True)


def test_the_teams_that_have_waited_are_bounded():
    """Also where fronts name a new one each time."""
    waiting = []
    line = SimpleNamespace(waiting_for=lambda: waiting, shares=SimpleNamespace(rows=lambda: ()))
    scrape = Scrape([SimpleNamespace(name="a", line=line)], dict, lambda: (0, 0))
    for number in range(3 * MOST_TEAMS):
        waiting[:] = [("w", 0.0, f"team-{number}")]
        assert len(scrape._waiting()) <= MOST_TEAMS + 1


@pytest.mark.parametrize("share", [1e-9, 1e6])
def test_a_share_of_any_size_starves_nobody(share):
    """One team with such a share beside one with an ordinary one: both are served."""

    async def story(node):
        first = [node.ask(call_for(OTHER, team="odd", share=share), hello(OTHER, tokens=20)) for _ in range(6)]
        second = [node.ask(call_for(BIG, team="plain"), hello(BIG, tokens=20)) for _ in range(6)]
        return {reply.status for reply in await asyncio.gather(*first, *second)}

    assert play(story) == {200}


def test_streams_that_nobody_reads_do_not_hold_up_others():
    """A front that hangs costs a buffer."""

    async def story(node):
        silent = [await node.connected() for _ in range(20)]
        for raw in silent:
            await raw.send(request_bytes("GET", "/router/node/events", headers=headers_of(None)))
        for _ in range(10):
            asked = [node.ask(call_for(model), hello(model)) for model in (SMALL, MIDDLE)]
            assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
        for raw in silent:
            raw.close()
            await raw.writer.wait_closed()
        return (await node.view()).is_up

    assert play(story)


def test_a_front_that_leaves_ends_its_stream():
    """Nothing of it goes on."""

    async def story(node):
        before = asyncio.all_tasks()
        raws = [await node.connected() for _ in range(5)]
        for raw in raws:
            await raw.send(request_bytes("GET", "/router/node/events", headers=headers_of(None)))
            await raw.head()
        await asyncio.sleep(1)
        streams = asyncio.all_tasks() - before
        assert len(streams) >= 5
        for raw in raws:
            raw.reset()
        await asyncio.sleep(2)
        return [task for task in streams if not task.done()]

    assert play(story) == []


def test_two_calls_in_one_request_are_one_of_them_or_none():
    """The header is not read as a list."""

    async def story(node):
        raw = await node.connected()
        headers = [*headers_of(call_for(SMALL)), ("X-Router-Call", "rubbish")]
        reply = await raw.ask("POST", "/api/generate", json.dumps(hello(SMALL)), headers)
        raw.close()
        await raw.writer.wait_closed()
        return reply.status

    assert play(story) in (200, 400)
