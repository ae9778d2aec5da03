"""An ASGI application behind our listener: its scope, its requests, and that it hears when a client has left."""

import asyncio
import json

import pytest

from router.http.server.asgi import Asgi, address
from router.http.server.listener import Listener
from tests.fakes import client, request_bytes


@pytest.fixture(autouse=True)
def _way():
    """No edge is here: once is enough."""


async def reading(scope, receive, send):
    """Answers with what it was asked."""
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"].decode())
        if not message["more_body"]:
            break
    plain = {key: scope[key] for key in ("method", "path", "http_version", "scheme", "root_path")}
    plain |= {"query": scope["query_string"].decode(), "raw": scope["raw_path"].decode(), "body": "".join(parts)}
    plain["client"] = list(scope["client"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    body = json.dumps(plain).encode()
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


async def test_an_application_gets_the_request_and_its_answer_is_sent():
    """Path decoded and raw, query apart, body in pieces."""
    async with Listener(Asgi(reading)) as listener, client(listener.port) as raw:
        reply = await raw.ask("POST", "/a%20b?x=1&y", '{"n":1}')
        found = reply.json()
        assert (reply.status, reply.headers["x"]) == (200, "y")
        assert found.pop("client")[0] == "127.0.0.1"
        assert found == {
            "method": "POST",
            "path": "/a b",
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "query": "x=1&y",
            "raw": "/a%20b",
            "body": '{"n":1}',
        }
        assert (await raw.ask("GET", "/plain")).json()["path"] == "/plain"


async def test_a_body_that_comes_in_pieces_is_handed_on_in_pieces():
    """The last one says so."""
    async with Listener(Asgi(reading)) as listener, client(listener.port) as raw:
        whole = request_bytes("POST", "/", '{"n":1}')
        await raw.send(whole[:-3])
        await asyncio.sleep(0.05)
        await raw.send(whole[-3:])
        assert (await raw.reply()).json()["body"] == '{"n":1}'


@pytest.mark.parametrize("is_whole", [True, False], ids=["after its request", "within its request"])
async def test_an_application_hears_that_its_client_has_left(is_whole):
    """It may be streaming, or waiting for a body."""
    heard = asyncio.Queue()

    async def listening(_scope, receive, _send):
        try:
            while (message := await receive())["type"] != "http.disconnect":
                heard.put_nowait(message["type"])
            heard.put_nowait("http.disconnect")
        except asyncio.CancelledError:
            heard.put_nowait("cancelled")
            raise

    async with Listener(Asgi(listening)) as listener, client(listener.port) as raw:
        whole = request_bytes("POST", "/", '{"n":1}')
        await raw.send(whole if is_whole else whole[:-3])
        assert await asyncio.wait_for(heard.get(), 30) == "http.request"
        raw.reset()
        assert await asyncio.wait_for(heard.get(), 30) in ("http.disconnect", "cancelled")


async def test_an_application_that_waits_hears_the_end_of_its_own_answer():
    """Such a task ends with it."""
    ended = asyncio.Event()

    async def answering(_scope, receive, send):
        await receive()
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})
        assert (await waiting)["type"] == "http.disconnect"
        ended.set()

    async with Listener(Asgi(answering)) as listener, client(listener.port) as raw:
        assert (await raw.ask("GET", "/")).status == 204
        await asyncio.wait_for(ended.wait(), 30)


def test_an_end_without_an_address_is_none():
    """A Unix socket has a path, or nothing."""
    assert address(("10.0.0.1", 80)) == ("10.0.0.1", 80)
    assert address(("::1", 80, 0, 0)) == ("::1", 80)
    assert address("/run/x.sock") is None
    assert address(None) is None
