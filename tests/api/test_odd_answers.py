"""Answers of the upstream that are long, late, wrong or cut, as clients get them by both ways through the edge."""

import asyncio
import json

import pytest

from router.api import sending
from router.api.sending import read_whole
from router.api.settings import EdgeSettings
from router.errors import NoVariantFits, UpstreamError
from router.http.client.pool import HttpRelay
from router.http.client.response import UpstreamResponse
from router.routing.directory import VirtualModel
from tests.fakes import FakeDispatcher, RawClient, client, request_bytes, running_edge
from tests.http.raw_upstream import STREAM_HEAD, answer, chunk, raw_upstream
from tests.http.scripted_relay import ScriptedRelay

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}],"stream":false}'
JSON = ((b"content-type", b"application/json"),)


def edge_to(upstream, settings=None, **more):
    return running_edge(FakeDispatcher(HttpRelay(upstream.url), **more), settings)


async def test_an_answer_too_long_to_hold_back_is_sent_on_while_it_comes():
    """An error among them says that it need not be tried again."""
    first, rest, has_head = bytes(sending.WHOLE_BYTES + 1), b"rest", asyncio.Event()
    size = len(first) + len(rest)

    async def script(visit):
        await visit.say(b"HTTP/1.1 500 Oops\r\ncontent-length: %d\r\n\r\n%b" % (size, first))
        await has_head.wait()
        await visit.say(rest)

    async with raw_upstream(script) as upstream, edge_to(upstream) as running, client(running.port) as raw:
        await raw.send(request_bytes("POST", "/api/chat", CHAT))
        status, headers = await raw.head()
        assert (status, headers["x-should-retry"]) == (500, "false")
        has_head.set()
        assert await raw.reader.readexactly(size) == first + rest
        (released,) = running.dispatcher.released
        assert (released.outcome, released.sent_bytes) == ("completed", size)


async def test_a_last_line_without_its_line_break_reaches_the_client():
    """It is whole, and the stream's own last word."""

    async def script(visit):
        await visit.say(STREAM_HEAD + chunk(b'{"a":1}\n') + chunk(b'{"done":true}') + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream, edge_to(upstream) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/api/chat", CHAT)
        assert reply.body == b'{"a":1}\n{"done":true}'
        assert running.dispatcher.released[0].outcome == "completed"


async def test_a_client_that_reads_slowly_gets_all_of_a_stream_that_was_there_at_once():
    """The first piece is more than its socket takes."""
    line = b'{"response":"' + b"x" * 100_000 + b'"}\n'

    async def script(visit):
        await visit.say(STREAM_HEAD + chunk(line * 40) + chunk(b'{"done":true}\n') + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream, edge_to(upstream) as running:
        raw = await RawClient.to(running.port, receive_buffer=4096)
        await raw.send(request_bytes("POST", "/api/chat", CHAT))
        await asyncio.sleep(0.2)
        status, _ = await raw.head()
        body, is_cut = await raw._chunks()
        assert (status, body == line * 40 + b'{"done":true}\n', is_cut) == (200, True, False)
        raw.close()


async def test_an_answer_that_we_look_into_is_bounded():
    """And closed on every way out; its bytes are counted before they are kept."""
    held: list[int] = []
    assert await read_whole(UpstreamResponse.of(200, JSON, b"12345"), held.append, 5) == b"12345"
    assert sum(held) == 5
    with pytest.raises(UpstreamError, match="too large"):
        await read_whole(UpstreamResponse.of(200, JSON, b"123456"), held.append, 5)


class Refusing(FakeDispatcher):
    """Refuses every request, at once or in a task."""

    def start(self, *_):
        return NoVariantFits("nothing fits", retry_after_s=2.0)

    async def dispatch(self, *_):
        raise NoVariantFits("nothing fits", retry_after_s=2.0)


async def test_a_request_that_is_refused_in_its_first_attempt_is_answered_with_why():
    """By either way."""
    dispatcher = Refusing(ScriptedRelay(lambda _: UpstreamResponse.of(200, JSON)))
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        for _ in range(2):
            reply = await raw.ask("POST", "/api/chat", CHAT)
            assert (reply.status, reply.json(), reply.headers["retry-after"]) == (503, {"error": "nothing fits"}, "2")


class Garbled(FakeDispatcher):
    """Its answers say another length than they have."""

    def answer(self, call, upstream):
        pairs = upstream.head.headers
        pairs[:] = [(name, b"999" if name == b"content-length" else value) for name, value in pairs]
        return super().answer(call, upstream)


async def test_an_answer_that_is_not_as_long_as_it_says_is_cut_and_never_padded(caplog):
    """Its client must not take it for whole; the fault is logged, and the place is free."""
    async with raw_upstream(answer(b"abc", status=b"404 Not Found")) as upstream:
        dispatcher = Garbled(HttpRelay(upstream.url))
        async with running_edge(dispatcher) as running:
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await raw.head()
            raw.close()
            assert len(dispatcher.released) == 1
    assert "does not match its content-length" in caplog.text


class Broken(FakeDispatcher):
    """Its answers name a model in a way that nobody can replace."""

    def answer(self, call, upstream):
        found = super().answer(call, upstream)
        found.rename = (b"\xff", b"\xff")
        return found


async def test_a_fault_of_ours_in_an_answer_is_a_clean_error(caplog):
    """Nothing was sent yet: the client gets a 500, the log the reason, and the place is free."""
    async with raw_upstream(answer(b'{"model":"m"}')) as upstream:
        dispatcher = Broken(HttpRelay(upstream.url))
        async with running_edge(dispatcher) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT)
            assert (reply.status, reply.json()) == (500, {"error": "internal error"})
            assert len(dispatcher.released) == 1
    assert "UnicodeDecodeError" in caplog.text


async def test_a_body_that_is_here_already_is_bounded_as_well():
    """Whether it says its length or not."""
    settings = EdgeSettings(body_bytes=50)
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, JSON)))
    whole = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n%b"
    framings = (
        (b"Content-Length: %d" % len(CHAT), CHAT.encode()),
        (b"Transfer-Encoding: chunked", chunk(CHAT.encode()) + b"0\r\n\r\n"),
    )
    for header, body in framings:
        async with running_edge(dispatcher, settings) as running, client(running.port) as raw:
            await raw.send(whole % (header, body))
            assert (await raw.reply()).status == 413


async def test_an_upload_that_stalls_is_408():
    """Its request upstream is given up."""
    gone = asyncio.Event()

    async def script(visit):
        await visit.gone()
        gone.set()

    async with raw_upstream(script, reads_bodies=False) as upstream:
        async with edge_to(upstream, EdgeSettings(body_idle_s=0.2)) as running, client(running.port) as raw:
            target = "/api/blobs/sha256:" + "a" * 64
            await raw.send(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc".encode())
            assert (await raw.reply()).status == 408
            await asyncio.wait_for(gone.wait(), 30)


async def test_a_hidden_tag_is_no_model_and_an_error_of_a_list_is_passed_on():
    """Nothing is read into what is not a list."""
    dispatcher = FakeDispatcher(
        ScriptedRelay(lambda _: UpstreamResponse.of(500, JSON, b'{"error":"x"}')), hidden={"tag": "m"}
    )
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        reply = await raw.ask("GET", "/v1/models/tag")
        assert (reply.status, reply.json()["error"]["message"]) == (404, "model 'tag' not found")
        reply = await raw.ask("GET", "/api/tags")
        assert (reply.status, reply.body) == (500, b'{"error":"x"}')


ENCODED = b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx"


@pytest.mark.parametrize(
    ("said", "status", "changes"),
    [(b"nonsense", 502, 0), (ENCODED, 502, 1), (STREAM_HEAD + chunk(b'{"status":"pulling"}\n'), 200, 1)],
    ids=["no answer", "one that nobody can read", "half a one"],
)
async def test_a_management_answer_that_breaks_off_ends_with_an_error(said, status, changes):
    """As an answer of its own where none has begun; where the upstream may have acted the catalog is read again."""

    async def script(visit):
        await visit.say(said)
        visit.writer.close()

    async with raw_upstream(script) as upstream, edge_to(upstream) as running, client(running.port) as raw:
        reply = await raw.ask("POST", "/api/pull", '{"model":"m"}')
        assert (reply.status, reply.is_cut) == (status, False)
        assert "error" in json.loads(reply.body.splitlines()[-1])
        assert running.dispatcher.catalog_changes == changes


async def test_a_long_management_answer_that_breaks_off_is_cut_visibly():
    """There is no other way to say it."""

    async def script(visit):
        size = sending.WHOLE_BYTES + 100_000
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * size) + bytes(size))
        await asyncio.sleep(0.1)
        visit.writer.close()

    async with raw_upstream(script) as upstream, edge_to(upstream) as running, client(running.port) as raw:
        assert (await raw.ask("POST", "/api/push", '{"model":"m"}')).is_cut


async def test_a_name_that_is_none_is_not_a_chain():
    """Ollama says what is wrong with it."""
    chain = [VirtualModel("team", ("m",))]
    async with raw_upstream(answer(b"{}")) as upstream, edge_to(upstream, virtual=chain) as running:
        async with client(running.port) as raw:
            assert (await raw.ask("DELETE", "/api/delete", '{"model":"not a name"}')).status == 200
            assert (await raw.ask("DELETE", "/api/delete", '{"model":"TEAM:latest"}')).status == 403


@pytest.mark.parametrize("status", [600, 777, 999])
async def test_a_status_that_does_not_exist_is_an_error_of_the_upstream(status):
    """Not one of the router's, and nothing that a client would have to guess."""
    async with (
        raw_upstream(answer(b"{}", status=b"%d Odd" % status)) as upstream,
        edge_to(upstream) as running,
        client(running.port) as raw,
    ):
        reply = await raw.ask("POST", "/api/chat", CHAT)
        assert (reply.status, str(status) in reply.json()["error"]) == (502, True)
        assert (await raw.ask("GET", "/api/tags")).status == 502


SHORTER, LONGER = 5, 500


@pytest.mark.parametrize("length", [SHORTER, LONGER])
@pytest.mark.parametrize("rename", [None, (b"m", b"a-longer-name")])
async def test_a_stream_with_a_length_gets_its_own_framing(length, rename):
    """Whatever length it says: what arrived as whole lines, and the error line if it was cut."""
    body = b'{"model":"m"}\n' + b'{"done":true}\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: %d\r\n\r\n" % length

    async def script(visit):
        await visit.say(head + body)
        visit.writer.close()

    async with (
        raw_upstream(script) as upstream,
        edge_to(upstream, rename=rename) as running,
        client(running.port) as raw,
    ):
        reply = await raw.ask("POST", "/api/chat", CHAT)
        lines = reply.body.splitlines()
        assert (reply.status, reply.is_cut, "content-length" in reply.headers) == (200, False, False)
        assert "error" in json.loads(lines[-1])
        assert len(lines) == (1 if length == SHORTER else 3)


async def test_a_stream_of_the_length_that_it_says_is_complete():
    """Also under another name."""
    body = b'{"model":"m"}\n{"done":true}\n'
    async with (
        raw_upstream(answer(body, type_=b"application/x-ndjson")) as upstream,
        edge_to(upstream, rename=(b"m", b"longer")) as running,
        client(running.port) as raw,
    ):
        reply = await raw.ask("POST", "/api/chat", CHAT)
        assert (reply.body, reply.is_cut) == (body.replace(b'"m"', b'"longer"'), False)


async def test_headers_that_are_the_routers_are_not_taken_from_the_upstream():
    """On streams, on whole answers and on lists: a cookie would be one of the router's, another address for it, too."""
    taken = {
        "set-cookie", "set-cookie2", "alt-svc", "strict-transport-security", "clear-site-data",
        "x-ratelimit-limit-tokens", "access-control-allow-origin",
    }  # fmt: skip
    own = b"x-router-model: fake\r\nx-request-id: fake\r\nx-kept: 1"
    own += b"".join(f"\r\n{name}: a=b".encode() for name in sorted(taken))

    async def script(visit):
        kind = b"application/x-ndjson" if b"stream" in visit.body else b"application/json"
        body = b'{"done":true}\n'
        await visit.say(
            b"HTTP/1.1 200 OK\r\n%b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (own, kind, len(body), body)
        )

    async with raw_upstream(script) as upstream, edge_to(upstream) as running, client(running.port) as raw:
        for method, target, body in (("POST", "/api/chat", CHAT), ("POST", "/api/embed", '{"model":"m"}')):
            reply = await raw.ask(method, target, body)
            assert (reply.headers["x-router-model"], reply.headers["x-kept"]) == ("m", "1")
            assert reply.headers["x-request-id"] != "fake"
            assert not taken & set(reply.headers)
        reply = await raw.ask("GET", "/api/tags")
        assert not (taken | {"x-router-model"}) & set(reply.headers)


async def test_a_line_without_end_ends_as_an_error():
    """The lines in front of it have arrived."""

    async def script(visit):
        await visit.say(STREAM_HEAD + chunk(b'{"a":1}\n'))
        for _ in range(100):
            await visit.say(chunk(b"x" * 1000))
        await visit.gone()

    async with raw_upstream(script) as upstream, edge_to(upstream, EdgeSettings(line_bytes=5000)) as running:
        async with client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT)
            first, last = reply.body.splitlines()
            assert (first, "more than 5000 bytes" in json.loads(last)["error"]) == (b'{"a":1}', True)
            assert running.dispatcher.released[-1].outcome == "upstream_error"


@pytest.mark.parametrize("name", ["a\x00b", "a\x1b[2Jb", "a\x7fb", "\x9b"])
async def test_a_name_with_control_characters_is_no_name_on_every_route(name):
    """In a body and in a path; what is answered holds none of them."""
    dispatcher = FakeDispatcher(ScriptedRelay(lambda _: UpstreamResponse.of(200, JSON, b"{}")))
    path = "".join(f"%{byte:02x}" for byte in name.encode())
    asked = [
        ("POST", "/api/chat", {"model": name, "messages": []}),
        ("POST", "/v1/chat/completions", {"model": name, "messages": []}),
        ("POST", "/v1/messages", {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
        ("POST", "/api/show", {"model": name}),
        ("DELETE", "/api/delete", {"model": name}),
        ("POST", "/api/copy", {"source": "m", "destination": name}),
        ("GET", f"/v1/models/{path}", None),
        ("HEAD", f"/api/blobs/{path}", None),
    ]
    async with running_edge(dispatcher) as running, client(running.port) as raw:
        for method, target, value in asked:
            reply = await raw.ask(method, target, None if value is None else json.dumps(value))
            assert reply.status == 400, (method, target)
            said = reply.body + "".join(reply.headers.values()).encode()
            assert not set(said) & {0x00, 0x1B, 0x7F, 0x9B}
    assert dispatcher.relay.requests == []
