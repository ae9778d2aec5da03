"""Streams through a real edge: byte-exact, cancellable at any time, never cut silently, never buffered unbounded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random

import pytest

from router.errors import UpstreamError
from router.http.client.pool import HttpRelay
from router.http.server.limits import WireLimits
from router.routing.call import Call
from tests.fakes import FakeDispatcher, RawClient, client, needs_pauses, request_bytes, running_edge
from tests.http.raw_upstream import STREAM_HEAD, Script, Visit, answer, chunk, raw_upstream, reset

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}]}'
SSE_HEAD = STREAM_HEAD.replace(b"application/x-ndjson", b"text/event-stream")
BODIES = {
    "/api/chat": CHAT,
    "/api/generate": '{"model":"m","prompt":"x"}',
    "/v1/chat/completions": CHAT[:-1] + ',"stream":true}',
    "/v1/completions": '{"model":"m","prompt":"x","stream":true}',
    "/v1/responses": '{"model":"m","input":"x","stream":true}',
    "/v1/messages": CHAT[:-1] + ',"max_tokens":5,"stream":true}',
    "/api/pull": '{"model":"m"}',
}


def line(number: int, *, done: bool = False) -> bytes:
    return b'{"model":"m","n":%d,"done":%b}\n' % (number, b"true" if done else b"false")


def piece(target: bytes) -> bytes:
    return b'data: {"n":1}\n\n' if target.startswith(b"/v1") else line(1)


def head_for(target: bytes) -> bytes:
    return SSE_HEAD if target.startswith(b"/v1") else STREAM_HEAD


async def hang(visit: Visit) -> None:
    visit.upstream.gone_at.append(await visit.gone())


async def hang_mid_stream(visit: Visit) -> None:
    await visit.say(head_for(visit.target) + chunk(piece(visit.target)))
    await hang(visit)


async def until(true: object, timeout_s: float = 2.0) -> None:
    """Poll until a condition holds, for at most `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not true():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("target", BODIES)
async def test_leaving_mid_stream_cancels_the_upstream_a1(target: str, how: str) -> None:
    """FIN or RST in mid-stream on every streamed route: the upstream's connection is closed, the answer released."""
    async with raw_upstream(hang_mid_stream) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", target, BODIES[target]))
            await raw.reader.readuntil(b'"n":1')
            left_at = asyncio.get_running_loop().time()
            getattr(raw, how)()
            await until(lambda: upstream.gone_at)
            assert upstream.gone_at[0] - left_at < 1.0
            if target != "/api/pull":
                await until(lambda: running.dispatcher.log == ["client_gone"])


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_leaving_before_the_first_byte_cancels_the_upstream_a2_a3(stream: str) -> None:
    """A request to a silent upstream is cancelled too, streamed or not."""
    body = CHAT[:-1] + f',"stream":{stream}}}'
    async with raw_upstream(hang) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", "/api/chat", body))
            await until(lambda: upstream.requests)
            raw.close()
            await until(lambda: upstream.gone_at)


async def test_a_request_whose_client_leaves_while_queued_is_not_sent_a4() -> None:
    """One slot, 50 requests, 40 clients leave while they wait: the upstream sees exactly the other ten."""
    place = asyncio.Semaphore(1)
    release = asyncio.Event()

    async def before(_call: Call) -> None:
        async with place:
            await release.wait()

    async with raw_upstream(answer(line(0, done=True))) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url), before)) as running:
            clients = [await RawClient.to(running.port) for _ in range(50)]
            for raw in clients:
                await raw.send(request_bytes("POST", "/api/chat", CHAT))
            await until(lambda: len(running.dispatcher.calls) == 50)
            for raw in clients[10:]:
                raw.close()
            await until(lambda: running.listener.open_connections == 10)
            release.set()
            replies = [await raw.reply() for raw in clients[:10]]
            assert [reply.status for reply in replies] == [200] * 10
            assert len(upstream.requests) == 10
            for raw in clients[:10]:
                raw.close()


async def test_five_thousand_cancellations_leave_no_state_a5() -> None:
    """Clients leave at random moments; then 20 requests succeed, and connections, releases and tasks are in balance."""
    rng = random.Random(3)

    async def script(visit: Visit) -> None:
        await asyncio.sleep(rng.random() * 0.01)
        await visit.say(STREAM_HEAD)
        for number in range(4):
            await visit.say(chunk(line(number)))
            await asyncio.sleep(rng.random() * 0.004)
        await visit.say(chunk(line(9, done=True)) + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url, pool_size=40))) as running:

            async def worker() -> None:
                for _ in range(25):
                    raw = await RawClient.to(running.port)
                    await raw.send(request_bytes("POST", "/api/chat", CHAT))
                    await asyncio.sleep(rng.random() * 0.02)
                    rng.choice([raw.close, raw.reset])()

            await asyncio.gather(*(worker() for _ in range(40)))
            await until(lambda: running.listener.open_connections == 0)
            async with client(running.port) as raw:
                for _ in range(20):
                    async with asyncio.timeout(1):
                        assert (await raw.ask("POST", "/api/chat", CHAT)).status == 200
            await until(lambda: not running.listener.tasks())
            dispatcher = running.dispatcher
            assert dispatcher.relay.open_connections <= 40  # type: ignore[attr-defined]


CUTS: dict[str, Script] = {}


def cut(name: str) -> Script:
    async def script(visit: Visit) -> None:
        data = b"".join(chunk(piece(visit.target)) for _ in range(2))
        if name == "half-line":
            data += chunk(piece(visit.target)[:7])
        await visit.say(head_for(visit.target) + data)
        await asyncio.sleep(0.01)
        if name == "clean-eof":
            await visit.say(b"0\r\n\r\n")
        elif name == "inside-chunk":
            await visit.say(b"50\r\nxx")
        elif name == "bad-chunk":
            await visit.say(b"zz\r\n")
        if name == "reset":
            reset(visit.writer)
        visit.writer.close()

    return script


@pytest.mark.parametrize("how", ["eof", "clean-eof", "reset", "inside-chunk", "bad-chunk", "half-line"])
@pytest.mark.parametrize("target", BODIES)
async def test_a_broken_stream_ends_with_one_error_in_its_dialect_a10_a11(target: str, how: str) -> None:
    """The client gets whole lines, then one error line or event, a well-formed end of the body, and no [DONE]."""
    async with raw_upstream(cut(how)) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            reply = await raw.ask("POST", target, BODIES[target])
            assert not reply.is_cut
            whole, good = reply.body, piece(target.encode()) * 2
            assert whole.startswith(good)
            rest = whole[len(good) :]
            if target.startswith("/api"):
                assert rest.count(b"\n") == 1
                assert isinstance(json.loads(rest)["error"], str)
                return
            assert rest.endswith(b"\n\n")
            assert rest.count(b"\n\n") == 1
            assert b"[DONE]" not in rest
            value = json.loads(rest.split(b"data: ", 1)[1])
            if target in ("/v1/chat/completions", "/v1/completions"):
                assert value["error"]["type"] == "api_error"
            else:
                assert rest.startswith(b"event: error\n")
                assert value["type"] == "error"


@pytest.mark.parametrize("target", BODIES)
async def test_a_properly_ended_stream_gets_no_error_line_a10(target: str) -> None:
    """Nor does one that ends with the upstream's own error."""
    ends = {
        "/api/pull": b'{"status":"success"}\n',
        "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        "/v1/responses": b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
        "/v1/chat/completions": b"data: [DONE]\n\n",
        "/v1/completions": b"data: [DONE]\n\n",
    }
    end = ends.get(target, line(2, done=True))
    error = b'{"error":"boom"}\n' if target.startswith("/api") else b'event: error\ndata: {"type":"error"}\n\n'
    for last in (end, error):

        async def script(visit: Visit, last: bytes = last) -> None:
            await visit.say(head_for(visit.target) + chunk(piece(visit.target)) + chunk(last) + b"0\r\n\r\n")

        async with raw_upstream(script) as upstream:
            async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
                reply = await raw.ask("POST", target, BODIES[target])
                assert reply.body == piece(target.encode()) + last
                if target != "/api/pull":
                    assert running.dispatcher.log == ["completed"]


@pytest.mark.parametrize("how", ["short-length", "eof", "gzip", "no-http"])
async def test_a_broken_unstreamed_answer_is_a_clean_error_a11(how: str) -> None:
    """An unstreamed answer is buffered until it is complete: 502 in the dialect, marked against retries (C4)."""

    async def script(visit: Visit) -> None:
        raws = {
            "short-length": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
            "eof": b"",
            "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
            "no-http": b"SSH-2.0-x\r\n\r\n",
        }
        await visit.say(raws[how])
        visit.writer.close()

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT[:-1] + ',"stream":false}')
            assert reply.status == 502
            assert isinstance(reply.json()["error"], str)
            reply = await raw.ask("POST", "/v1/chat/completions", CHAT)
            assert reply.status == 502
            assert reply.json()["error"]["type"] == "api_error"
            if how != "eof":
                assert reply.headers["x-should-retry"] == "false"


async def test_a_relayed_stream_is_byte_exact_a9() -> None:
    """Emoji, line separators, big integers and a 3 MB line in odd pieces: the SHA-256 is equal on both sides."""
    rng = random.Random(5)
    texts = ["é世界😀 \u2028", "x" * 3_000_000, '123456789012345678901234567890, "q": "\\u2028"']
    lines = [f'{{"model":"m","text":"{text}"}}\n'.encode() for text in texts] + [line(4, done=True)]
    raw_body = b"".join(lines)

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD)
        at = 0
        while at < len(raw_body):
            size = rng.choice([1, 5, 700, 90_000])
            await visit.say(chunk(raw_body[at : at + size]))
            at += size
        await visit.say(b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT)
            assert hashlib.sha256(reply.body).digest() == hashlib.sha256(raw_body).digest()


async def test_a_line_of_nine_megabytes_is_passed_on_a13() -> None:
    """Although the scanner of the Go client ends at 8 MB."""
    big = b'{"model":"m","text":"' + b"y" * 9_000_000 + b'","done":true}\n'

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD + chunk(big) + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            assert (await raw.ask("POST", "/api/chat", CHAT)).body == big


async def test_each_line_is_sent_immediately_and_nothing_is_added_a7_a12() -> None:
    """The client reads line n before the upstream writes line n + 1, and the head before the first line."""
    turn = asyncio.Semaphore(0)

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD)
        for number in range(5):
            await turn.acquire()
            await visit.say(chunk(line(number)))
        await turn.acquire()
        await visit.say(chunk(line(9, done=True)) + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            status, headers = await raw.head()
            assert (status, headers["content-type"]) == (200, "application/x-ndjson")
            for number in range(5):
                turn.release()
                size = int(await raw.reader.readline(), 16)
                assert await raw.reader.readexactly(size + 2) == line(number) + b"\r\n"
            turn.release()


async def test_concurrent_streams_are_complete_and_in_order_a8() -> None:
    """200 streams: every line once and in order."""

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD)
        for number in range(20):
            await visit.say(chunk(line(number)))
            await asyncio.sleep(0.002)
        await visit.say(chunk(line(20, done=True)) + b"0\r\n\r\n")

    expected = b"".join(line(number) for number in range(20)) + line(20, done=True)
    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:

            async def stream() -> bytes:
                async with client(running.port) as raw:
                    return (await raw.ask("POST", "/api/chat", CHAT)).body

            assert set(await asyncio.gather(*(stream() for _ in range(60)))) == {expected}


@needs_pauses
async def test_a_client_that_stops_reading_pauses_the_upstream_and_is_cut_off_a14_a15() -> None:
    """Little is buffered for it; after the write-idle timeout it is cut off, and the upstream cancelled."""
    written = 0

    async def script(visit: Visit) -> None:
        nonlocal written
        await visit.say(STREAM_HEAD)
        block = chunk((b'{"text":"' + b"z" * 65000 + b'"}\n') * 4)
        try:
            for _ in range(400):
                await visit.say(block)
                written += len(block)
        finally:
            visit.upstream.gone_at.append(asyncio.get_running_loop().time())

    limits = WireLimits(write_idle_s=0.3)
    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), limits=limits) as running:
            raw = await RawClient.to(running.port, receive_buffer=4096)
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            await asyncio.sleep(0.15)
            stalled_at = written
            await asyncio.sleep(0.05)
            assert written - stalled_at < 1 << 20
            assert written < 60 << 20
            await until(lambda: upstream.gone_at, 5)
            await until(lambda: running.dispatcher.log == ["client_gone"], 5)
            raw.close()


async def test_a_derived_tags_name_is_replaced_in_every_form_of_stream() -> None:
    """By the variant's; nothing else is changed."""
    events = {
        b"/api/chat": b'{"model":"d~1","message":{"content":"\\"model\\":\\"d~1\\""},"done":true}\n',
        b"/v1/chat/completions": (
            b'data: {"id":"c","created":1,"model":"d~1","choices":[{"delta":{"content":"d~1"}}]}\n\ndata: [DONE]\n\n'
        ),
        b"/v1/completions": b'data: {"id":"c","choices":[{"text":"d~1"}],"model":"d~1"}\n\ndata: [DONE]\n\n',
        b"/v1/responses": (
            b"event: response.completed\n"
            b'data: {"response":{"metadata":{"model":"d~1"},"model":"d~1"},"type":"response.completed"}\n\n'
        ),
        b"/v1/messages": (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"d~1"}}\n\n'
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        ),
    }
    fields = {b"/api/chat": b'"model":"d~1","message"', b"/v1/responses": b'},"model":"d~1"}'}

    async def script(visit: Visit) -> None:
        await visit.say(head_for(visit.target))
        for byte in events[visit.target]:
            await visit.say(chunk(bytes([byte])))
        await visit.say(b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        dispatcher = FakeDispatcher(HttpRelay(upstream.url), rename=(b"d~1", b"llama3:8b"))
        async with running_edge(dispatcher) as running, client(running.port) as raw:
            for target, sent in events.items():
                field = fields.get(target, b'"model":"d~1"')
                expected = sent.replace(field, field.replace(b"d~1", b"llama3:8b"))
                assert (await raw.ask("POST", target.decode(), BODIES[target.decode()])).body == expected, target


async def test_a_derived_tags_name_is_replaced_in_an_unstreamed_answer() -> None:
    """The Content-Length is adapted to the longer name."""
    async with raw_upstream(answer(b'{"model":"d~1","done":true}')) as upstream:
        dispatcher = FakeDispatcher(HttpRelay(upstream.url), rename=(b"d~1", b"llama3:8b-instruct"))
        async with running_edge(dispatcher) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/chat", CHAT[:-1] + ',"stream":false}')
            assert reply.body == b'{"model":"llama3:8b-instruct","done":true}'


async def test_token_counts_are_reported_at_release() -> None:
    """They are read from the last line, the usage event, or the whole answer."""
    answers = {
        b"/api/chat": (STREAM_HEAD, b'{"done":true,"prompt_eval_count":5,"eval_count":11}\n'),
        b"/v1/chat/completions": (
            SSE_HEAD,
            b'data: {"usage":{"prompt_tokens":5,"completion_tokens":11}}\n\ndata: [DONE]\n\n',
        ),
        b"/v1/messages": (
            STREAM_HEAD.replace(b"application/x-ndjson", b"application/json"),
            b'{"usage":{"input_tokens":5,"output_tokens":11}}',
        ),
    }

    async def script(visit: Visit) -> None:
        head, body = answers[visit.target]
        await visit.say(head + chunk(body) + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            for target in answers:
                await raw.ask("POST", target.decode(), BODIES[target.decode()])
            counts = [(released.tokens_in, released.tokens_out) for released in running.dispatcher.released]
            assert counts == [(5, 11)] * 3


async def test_an_answer_too_large_to_buffer_is_cut_off_visibly() -> None:
    """Beyond 4 MB an unstreamed answer is relayed while it arrives; if it breaks off, so does the client's."""

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(50):
            await visit.say(chunk(b"[" * 131072))
        visit.writer.close()

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            reply = await raw.ask("POST", "/api/embed", '{"model":"m","input":"x"}')
            assert reply.status == 200
            assert reply.is_cut
            await until(lambda: running.dispatcher.log == ["upstream_error"])
            assert "broke off" in running.dispatcher.released[0].error


async def test_an_upstream_error_is_rendered_in_the_dialect() -> None:
    """If nothing was sent yet, it is a 502 with the route's own error body."""

    async def before(_call: Call) -> None:
        raise UpstreamError("cannot connect to http://x: refused")

    async with raw_upstream(answer(b"x")) as upstream:
        async with (
            running_edge(FakeDispatcher(HttpRelay(upstream.url), before)) as running,
            client(running.port) as raw,
        ):
            reply = await raw.ask("POST", "/v1/messages", BODIES["/v1/messages"])
            assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
            assert "x-should-retry" not in reply.headers
