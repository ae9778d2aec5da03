"""A call of the control plane ends in bounded time and memory, whatever the server does."""

import asyncio
import gc
import gzip
import json
import time

import msgspec
import pytest

from router.adapters.control import LARGE_BYTES, ControlPlane, Refused, read_object, read_rows
from router.adapters.gpu.prometheus import PrometheusProbe
from router.adapters.ollama import OllamaClient
from router.errors import ProbeError, UpstreamError, UpstreamTimeout
from tests.fakes import server_that
from tests.leftovers import uncollected

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def drip(writer, text):
    while True:
        writer.write(text)
        await writer.drain()
        await asyncio.sleep(0.01)


async def dripping_body(_reader, writer):
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await drip(writer, b"1\r\n \r\n")


async def dripping_head(_reader, writer):
    writer.write(HEAD + b"X-Slow: ")
    await drip(writer, b"x")


async def silence(_reader, _writer):
    await asyncio.sleep(60)


def control(url, **more):
    return ControlPlane(url, **{"timeout_s": 0.15, "connect_timeout_s": 1.0, "max_bytes": 1 << 20} | more)


@pytest.mark.parametrize("answers", [dripping_body, dripping_head, silence])
async def test_a_call_ends_at_its_deadline_however_its_answer_comes(answers):
    """A byte now and then is within every timeout of a single read; and no connection is lost to the pool."""
    async with server_that(answers) as url:
        plane = control(url)
        for _ in range(5):
            calls = [asyncio.create_task(plane.ask("GET", "/api/ps")) for _ in range(4)]
            async with asyncio.timeout(5):
                results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {UpstreamTimeout}
        assert plane._http._transport._pool.connections == []
        assert plane._calls == set()
        await plane.aclose()


@pytest.mark.real_time
async def test_hanging_calls_hold_up_no_other_one():
    """However many there are."""

    async def by_turn(reader, writer):
        waiting.append(writer)
        if len(waiting) == 120:
            all_wait.set()
        if len(waiting) <= 120:
            await reader.read()
        writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")

    waiting, all_wait = [], asyncio.Event()
    async with server_that(by_turn) as url:
        plane = control(url, timeout_s=60.0, connect_timeout_s=60.0)
        hanging = [asyncio.create_task(plane.ask("GET", "/hang")) for _ in range(120)]
        await all_wait.wait()
        assert await plane.ask("GET", "/api/ps") == {}
        await plane.aclose()
        await asyncio.gather(*hanging, return_exceptions=True)


async def endless(_reader, writer):
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
        await writer.drain()


async def zipped(_reader, writer):
    body = gzip.compress(b'{"a": "' + b"x" * (64 << 20) + b'"}')
    writer.write(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


@pytest.mark.parametrize(
    ("answers", "why"), [(endless, "larger than 1048576 bytes"), (zipped, "an encoding that was not asked for")]
)
async def test_an_answer_that_is_too_large_is_given_up(answers, why):
    """As soon as it is; also one that is small only on the wire."""
    async with server_that(answers) as url:
        plane = control(url, timeout_s=30.0)
        with pytest.raises(UpstreamError, match=why):
            await plane.ask("GET", "/api/tags")
        await plane.aclose()


async def test_others_get_their_turn_while_an_answer_of_tiny_pieces_is_read():
    """All of which have come at one time."""

    async def pieces(_reader, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 10_000 + b"2\r\n{}\r\n0\r\n\r\n")
        await writer.drain()

    async with server_that(pieces) as url:
        plane, gaps = control(url, timeout_s=30.0), [0.0]
        ask = asyncio.create_task(plane.ask("GET", "/api/tags"))
        while not ask.done():
            began_s = time.thread_time()
            await asyncio.sleep(0)
            gaps.append(time.thread_time() - began_s)
        assert max(gaps) < sum(gap for gap in gaps if gap > max(gaps) / 100) / 4
        assert await ask == {}
        await plane.aclose()


async def test_no_compression_is_asked_for():
    """What is not compressed is bounded as it comes."""
    heads = []

    async def serve(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await answering(b"{}")(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    plane = control(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=5.0)
    await plane.ask("GET", "/api/tags")
    assert b"accept-encoding: identity\r\n" in heads[0].lower()
    await plane.aclose()
    server.close()


def answering(body, status=b"200 OK"):
    async def answers(_reader, writer):
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()

    return answers


LISTS = [b'{"models":5}', b'{"models":{"a":1}}', b'{"models":"x"}', b'{"models":true}', b"\xff", b'{"models":[NaN]}']


@pytest.mark.parametrize("body", [*LISTS, b'{"models":' + b"[" * 100_000, b'{"models":[{"size":1e999}]}'])
@pytest.mark.parametrize("method", ["tags", "ps"])
async def test_a_list_that_is_none_is_an_upstream_error(method, body):
    """Never another exception, which would end the reading of the state."""
    async with server_that(answering(body)) as url:
        client = OllamaClient(url)
        with pytest.raises(UpstreamError):
            await getattr(client, method)()
        await client.aclose()


ROW = (
    b'{"models":[null,5,"x",[],{"name":%b,"size":%b,"size_vram":%b,"context_length":%b,"digest":%b,"expires_at":%b,'
    b'"details":%b}]}'
)


@pytest.mark.parametrize(
    "value", [b"null", b"-1", b"1.5", b"1e300", b"9" * 400, b'"x"', b"[1]", b'{"a":1}', b"true", b"[[[]]]"]
)
async def test_a_row_with_fields_of_any_type_is_read(value):
    """What is of another type counts as left out."""
    async with server_that(answering(ROW % ((value,) * 7))) as url:
        client = OllamaClient(url)
        (row,) = await client.ps()
        assert isinstance(row.name, str)
        assert 0 <= row.size_vram_bytes <= 1 << 60
        assert row.context_length is None or 1 <= row.context_length < 1 << 41
        assert len(await client.tags()) == 1
        await client.aclose()


@pytest.mark.parametrize("version", [b"5", b"null", b'["1"]', b'{"a":1}', b'"0.6.4"'])
async def test_a_version_is_text_or_unknown(version):
    """Its parts are compared later."""
    async with server_that(answering(b'{"version":%b}' % version)) as url:
        client = OllamaClient(url)
        assert await client.version() == ("0.6.4" if version == b'"0.6.4"' else "")
        await client.aclose()


async def test_the_text_of_an_error_is_bounded():
    """It goes to logs and clients."""
    async with server_that(answering(b'{"error":"' + b"x" * 100_000 + b'"}', b"500 Oops")) as url:
        plane = control(url, timeout_s=5.0)
        with pytest.raises(Refused) as caught:
            await plane.ask("GET", "/api/tags")
        assert len(caught.value.message) < 3000
        await plane.aclose()


def interim(count):
    async def answers(_reader, writer):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * count)
        writer.write(HEAD + b'Content-Length: 13\r\n\r\n{"models":[]}')
        await writer.drain()
        await asyncio.sleep(60)

    return answers


async def test_interim_answers_without_end_are_an_error_and_a_few_are_not():
    """They are read a few at a time: to parse thousands in one step would hold the loop."""
    async with server_that(interim(10)) as url:
        plane = control(url, timeout_s=30.0)
        assert await plane.ask("GET", "/api/ps") == {"models": []}
        await plane.aclose()
    async with server_that(interim(5000)) as url:
        plane, probe = control(url, timeout_s=30.0), PrometheusProbe(url, timeout_s=30.0)
        with pytest.raises(UpstreamError, match="head is longer than"):
            await plane.ask("GET", "/api/ps")
        with pytest.raises(ProbeError, match="head is longer than"):
            await probe.read()
        await plane.aclose()
        await probe.aclose()


@pytest.mark.parametrize("more", [b"", b',"x":"' + b"word " * 300_000 + b'"', b',"x":' + b"[" * 900 + b"]" * 900])
def test_a_long_answer_is_read_in_steps(monkeypatch, more):
    """No part of it that is decoded at once is long, and nothing is lost."""
    rows = [{"name": f"m{number}", "details": {"families": ["a", "b"]}} for number in range(6000)]
    content = json.dumps({"models": rows})[:-1].encode() + more + b"}"
    decode, sizes = msgspec.json.decode, []
    monkeypatch.setattr(msgspec.json, "decode", lambda text: sizes.append(len(memoryview(text))) or decode(text))
    if b"word" in more:
        with pytest.raises(msgspec.DecodeError):
            read_object(content)
    else:
        assert read_object(content)["models"] == rows
    assert max(sizes) < 10_000


async def answered(reader, writer):
    while True:
        writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
        await reader.readuntil(b"\r\n\r\n")


async def test_a_call_leaves_nothing_for_the_garbage_collector():
    """Thousands of models are shown one after the other, and what that leaves would be freed in one step."""
    async with server_that(answered) as url:
        plane = control(url, timeout_s=30.0)
        await plane.ask("GET", "/api/ps")
        with uncollected():
            for _ in range(10):
                await plane.ask("GET", "/api/ps")
            await asyncio.sleep(0)
            assert gc.collect() < 10
        await plane.aclose()


async def test_large_answers_are_held_one_at_a_time():
    """Each takes several times its bytes as pieces, as one body and as objects; small ones pass meanwhile."""
    sent, stalled, go_on = [], asyncio.Event(), asyncio.Event()
    half = b" " * (LARGE_BYTES * 3 // 4)

    async def large(_reader, writer):
        sent.append(writer)
        if len(sent) == 3:
            writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
            return
        is_first = len(sent) == 1
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * len(half) + 2) + half + half)
        await writer.drain()
        if is_first:
            stalled.set()
            await go_on.wait()
        writer.write(b"{}")
        await writer.drain()

    async with server_that(large) as url:
        plane = control(url, timeout_s=30.0, max_bytes=64 << 20)
        first = asyncio.create_task(plane.ask("GET", "/api/tags"))
        await stalled.wait()
        while not plane._large.locked():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        second = asyncio.create_task(plane.ask("GET", "/api/tags"))
        while len(sent) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert await plane.ask("GET", "/api/ps") == {}
        assert (first.done(), second.done()) == (False, False)
        go_on.set()
        assert (await first, await second) == ({}, {})
        assert not plane._large.locked()
        await plane.aclose()


def test_of_a_long_list_of_models_only_what_is_used_is_kept():
    """Whatever somebody writes beside it would be kept with thousands of rows."""
    row = {
        "name": "m", "size": 1, "digest": "d", "capabilities": ["vision"], "remote_host": "h" * 2000, "pad": "x" * 3000,
        "details": {"family": "llama", "families": ["llama"], "format": "f" * 2000, "level": 3},
    }  # fmt: skip
    found = read_rows(json.dumps({"models": [row] * 100 + [None]}).encode())["models"]
    used = {"name": "m", "size": 1, "digest": "d", "capabilities": ["vision"], "details": {"family": "llama"}}
    assert found == [used] * 100 + [None]
