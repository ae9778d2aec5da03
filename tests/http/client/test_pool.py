"""The data-plane client against a raw-socket upstream: framing, errors, pool, backpressure, cancellation."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import Busy, UpstreamError, UpstreamTimeout, UpstreamUnreached
from router.http.client.pool import MOST_FRONTS, HttpRelay
from router.http.client.response import UpstreamRequest, UpstreamResponse
from router.http.repeats import MAX_HEAD_BYTES
from tests.fakes import needs_pauses
from tests.http.raw_upstream import STREAM_HEAD, Visit, answer, chunk, raw_upstream, reset
from tests.leftovers import errors_left, uncollected

POST = UpstreamRequest(b"POST", b"/api/chat", ((b"content-type", b"application/json"),), b'{"model":"m"}')
GET = UpstreamRequest(b"GET", b"/api/tags")


async def read_all(response: UpstreamResponse) -> bytes:
    parts = []
    while part := await response.read():
        parts.append(part)
    return b"".join(parts)


async def test_a_request_is_sent_with_the_relays_framing_and_answered() -> None:
    """Target, headers and body arrive unchanged; Host, Accept-Encoding and Content-Length are the relay's own."""
    async with raw_upstream(answer(b'{"ok":true}')) as upstream:
        relay = HttpRelay(upstream.url)
        response = await relay.open(POST)
        assert (response.status, await read_all(response)) == (200, b'{"ok":true}')
        head, body = upstream.requests[0]
        assert head == (
            b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\n"
            b"content-type: application/json\r\ncontent-length: 13\r\n\r\n" % upstream.port
        )
        assert body == b'{"model":"m"}'
        await relay.aclose()


async def test_a_connection_is_reused_after_a_complete_answer() -> None:
    """Ten consecutive requests need one connection; the base path is in front of every target."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url + "/base/")
        for _ in range(10):
            assert await read_all(await relay.open(GET)) == b"x"
        assert (upstream.connections, relay.open_connections, relay.idle_connections) == (1, 1, 1)
        assert upstream.requests[0][0].startswith(b"GET /base/api/tags ")
        await relay.aclose()
        assert relay.open_connections == 0


async def test_an_answer_of_each_framing_is_read_in_full() -> None:
    """Chunked with trailers and extensions, Content-Length, until the connection's end, no body, after a 100."""
    answers = {
        b"/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"/length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"/close": b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"/continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"/none": b"HTTP/1.1 204 No Content\r\n\r\n",
        b"/zero": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    }

    async def script(visit: Visit) -> None:
        await visit.say(answers[visit.target])
        if visit.target == b"/close":
            visit.writer.close()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        for target in answers:
            expected = b"" if target in (b"/none", b"/zero") else b"hello"
            assert await read_all(await relay.open(UpstreamRequest(b"GET", target))) == expected, target
        await relay.aclose()


async def test_the_answer_to_a_head_request_has_no_body() -> None:
    """Whatever its Content-Length; the next request still works."""

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(2):
            response = await relay.open(UpstreamRequest(b"HEAD", b"/api/blobs/x"))
            assert (response.status, await response.read()) == (200, b"")
        await relay.aclose()


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=lambda raw: repr(raw[:45]),
)
async def test_an_answer_that_is_not_http_is_an_upstream_error_a11_e8(raw: bytes) -> None:
    """Malformed heads, header splitting, smuggling and a closed connection never reach the caller as an answer."""

    async def script(visit: Visit) -> None:
        await visit.say(raw)
        visit.writer.close()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        with pytest.raises(UpstreamError):
            await relay.open(POST)
        await asyncio.sleep(0)
        await relay.aclose()
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", [0, 1, 99, 600, 999])
async def test_a_status_that_does_not_exist_is_an_error_at_once_a11(status: int) -> None:
    """One below 100 is no provisional answer: nothing is waited for, though the connection stays open."""

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 %03d X\r\nContent-Length: 2\r\n\r\n{}" % status)
        await visit.reader.read()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        with pytest.raises(UpstreamError, match=f"the status {status}"):
            async with asyncio.timeout(30):
                await relay.open(POST)
        await relay.aclose()


@pytest.mark.parametrize("how", ["eof", "reset", "inside-chunk", "bad-chunk", "short-length"])
async def test_a_cut_answer_yields_its_bytes_and_then_an_error_a11(how: str) -> None:
    """The bytes that arrived can be read; then UpstreamError is raised, and the connection is not reused."""

    async def script(visit: Visit) -> None:
        if how == "short-length":
            await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
        else:
            await visit.say(STREAM_HEAD + chunk(b"hello"))
        await asyncio.sleep(0.02)
        if how == "inside-chunk":
            await visit.say(b"50\r\n")
        if how == "bad-chunk":
            await visit.say(b"zz\r\n")
        if how == "reset":
            reset(visit.writer)
        visit.writer.close()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        response = await relay.open(POST)
        assert await response.read() == b"hello"
        with pytest.raises(UpstreamError):
            await response.read()
        await asyncio.sleep(0.01)
        assert relay.open_connections == 0


async def test_bytes_after_a_complete_answer_end_the_connection_not_the_answer() -> None:
    """A second, unrequested answer is never taken for that to the next request."""

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na" * 2)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(3):
            assert await read_all(await relay.open(GET)) == b"a"
        assert upstream.connections == 3
        await relay.aclose()


async def test_a_request_on_a_closed_pooled_connection_is_retried_once_c1() -> None:
    """The upstream drops the connection at the second request, which is resent on a new connection."""

    async def script(visit: Visit) -> None:
        if visit.number == 2:
            visit.writer.close()
            return
        await answer(b"x")(visit)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        assert await read_all(await relay.open(GET)) == b"x"
        assert await read_all(await relay.open(GET)) == b"x"
        assert (len(upstream.requests), upstream.connections) == (3, 2)
        await relay.aclose()


async def test_a_request_that_may_not_be_resent_is_not_retried_c2() -> None:
    """A POST that is not marked safe is sent once, even if its pooled connection is closed."""

    async def script(visit: Visit) -> None:
        if visit.number == 2:
            visit.writer.close()
            return
        await answer(b"x")(visit)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        assert await read_all(await relay.open(POST)) == b"x"
        with pytest.raises(UpstreamError):
            await relay.open(POST)
        assert len(upstream.requests) == 2


async def test_a_request_on_a_new_connection_is_never_retried_c3() -> None:
    """An upstream that drops every request sees each exactly once."""

    async def script(visit: Visit) -> None:
        visit.writer.close()

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(5):
            with pytest.raises(UpstreamError):
                await relay.open(GET)
        assert len(upstream.requests) == 5


async def test_a_refused_connection_is_an_upstream_error() -> None:
    """With the address in its text; no connection is left open."""
    relay = HttpRelay("http://127.0.0.1:1")
    with pytest.raises(UpstreamError, match=r"cannot connect to http://127\.0\.0\.1:1"):
        await relay.open(GET)
    assert relay.open_connections == 0


async def test_each_wait_has_its_own_limit_b4() -> None:
    """A missing first byte and a missing next byte are UpstreamTimeouts; the connection is closed."""

    async def script(visit: Visit) -> None:
        if visit.target == b"/stalls":
            await visit.say(STREAM_HEAD + chunk(b"a"))
        visit.upstream.gone_at.append(await visit.gone())

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, first_byte_timeout_s=0.1, idle_timeout_s=0.05)
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.1 s"):
            await relay.open(POST)
        response = await relay.open(UpstreamRequest(b"GET", b"/stalls"))
        assert await response.read() == b"a"
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0\.05 s"):
            await response.read()
        await asyncio.sleep(0.02)
        assert len(upstream.gone_at) == 2


@pytest.mark.parametrize(
    "unit", [b"T: v\r\n", b"t", b"HTTP/1.1 102 Processing\r\n\r\n"], ids=["lines", "letters", "102"]
)
async def test_a_head_that_never_ends_keeps_no_wait_away_b4(unit: bytes) -> None:
    """However often something of it comes: nothing of it is an answer."""

    async def script(visit: Visit) -> None:
        if not unit.startswith(b"HTTP"):
            await visit.say(b"HTTP/1.1 200 OK\r\n")
        while not visit.writer.is_closing():
            await visit.say(unit)
            await asyncio.sleep(0.01)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, first_byte_timeout_s=0.2, idle_timeout_s=0.05)
        async with asyncio.timeout(30):
            with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.2 s"):
                await relay.open(POST)
        await relay.aclose()


FRAMING = [(b"0\r\n", b"T: v\r\n"), (b"0\r\nT: ", b"v"), (b"1;x=", b"y"), (b"", b"0")]
FRAMING_IDS = ["trailers", "trailer", "extension", "size"]


@pytest.mark.parametrize(("begin", "unit"), FRAMING, ids=FRAMING_IDS)
async def test_framing_that_never_ends_is_an_error(begin: bytes, unit: bytes) -> None:
    """Trailers, or what a chunk says of itself: it is not kept, and there is a limit to it."""

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD + chunk(b"a") + begin)
        while not visit.writer.is_closing():
            await visit.say(unit * (20_000 // len(unit)))

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        response = await relay.open(POST)
        assert await response.read() == b"a"
        async with asyncio.timeout(30):
            with pytest.raises(UpstreamError, match="not valid HTTP: too many headers"):
                await response.read()
        await relay.aclose()


@pytest.mark.parametrize(("begin", "unit"), FRAMING, ids=FRAMING_IDS)
async def test_framing_that_drips_keeps_no_wait_away(begin: bytes, unit: bytes) -> None:
    """A client gets nothing of it."""

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD + chunk(b"a") + begin)
        while not visit.writer.is_closing():
            await visit.say(unit)
            await asyncio.sleep(0.01)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, idle_timeout_s=0.2)
        response = await relay.open(POST)
        assert await response.read() == b"a"
        async with asyncio.timeout(30):
            with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0\.2 s"):
                await response.read()
        await relay.aclose()


async def test_trailers_are_discarded_e5() -> None:
    """The answer is what came before them."""

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD + chunk(b"a") + b"0\r\nX-Router-Model: x\r\nT: v\r\n\r\n")

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(2):
            response = await relay.open(POST)
            assert await read_all(response) == b"a"
            assert b"t" not in response.by_name
        assert upstream.connections == 1
        await relay.aclose()


async def test_a_slow_answer_within_its_limits_is_read_b4() -> None:
    """A cold load sends no header for long: only the first-byte timeout applies then."""

    async def script(visit: Visit) -> None:
        await asyncio.sleep(0.2)
        await answer(b"x")(visit)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, first_byte_timeout_s=2, idle_timeout_s=0.05)
        assert await read_all(await relay.open(POST)) == b"x"
        await relay.aclose()


async def test_an_unused_connection_expires() -> None:
    """It is closed after `idle_expiry_s`."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url, idle_expiry_s=0.04)
        await read_all(await relay.open(GET))
        await asyncio.sleep(0.12)
        assert (relay.open_connections, upstream.open_connections) == (0, 0)


async def test_the_pool_has_a_limit_and_a_bounded_wait() -> None:
    """With two connections, a third request waits until one is returned, or raises Busy after `pool_wait_s`."""
    release = asyncio.Event()

    async def script(visit: Visit) -> None:
        await release.wait()
        await answer(b"x")(visit)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, pool_size=2, pool_wait_s=0.05)
        first = [asyncio.create_task(relay.open(GET)) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(Busy):
            await relay.open(GET)
        waiting = asyncio.create_task(relay.open(GET))
        await asyncio.sleep(0)
        release.set()
        for task in [*first, waiting]:
            assert await read_all(await task) == b"x"
        assert upstream.connections == 2
        await relay.aclose()


async def test_closing_an_answer_cancels_it_at_the_upstream_a1() -> None:
    """The upstream sees a close() in mid-stream; after the end it is a no-op, and the connection is reused."""

    async def script(visit: Visit) -> None:
        if visit.target == b"/api/tags":
            await answer(b"x")(visit)
            return
        await visit.say(STREAM_HEAD + chunk(b"a"))
        visit.upstream.gone_at.append(await visit.gone())

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        response = await relay.open(POST)
        await response.read()
        left_at = asyncio.get_running_loop().time()
        response.close()
        response.close()
        await asyncio.sleep(0.05)
        assert upstream.gone_at[0] - left_at < 0.05
        assert relay.open_connections == 0
        done = await relay.open(GET)
        await read_all(done)
        done.close()
        assert relay.idle_connections == 1
        await relay.aclose()


async def test_a_cancelled_open_cancels_the_request_a2_a3() -> None:
    """A caller that is cancelled before the first byte closes the upstream's connection."""

    async def script(visit: Visit) -> None:
        visit.upstream.gone_at.append(await visit.gone())

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        task = asyncio.create_task(relay.open(POST))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.02)
        assert len(upstream.gone_at) == 1
        assert relay.open_connections == 0


async def numbers(count: int, size: int = 5) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"%0*d" % (size, number)


@pytest.mark.parametrize("length", [None, 50])
async def test_a_streamed_body_is_sent_chunked_or_with_its_length(length: int | None) -> None:
    """The upstream gets the same bytes in both framings, and the connection is reused."""
    async with raw_upstream(answer(b"x", status=b"201 Created")) as upstream:
        relay = HttpRelay(upstream.url)
        for _ in range(2):
            request = UpstreamRequest(b"POST", b"/api/blobs/x", (), numbers(10), length)
            response = await relay.open(request)
            assert (response.status, await read_all(response)) == (201, b"x")
        assert upstream.requests[1][1] == b"".join([part async for part in numbers(10)])
        assert upstream.connections == 1
        await relay.aclose()


async def test_an_early_answer_ends_an_upload() -> None:
    """`/api/blobs` answers 200 without reading a blob that it has: the answer is valid, the connection not reused."""

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        visit.writer.close()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.001)

    async with raw_upstream(script, reads_bodies=False) as upstream:
        relay = HttpRelay(upstream.url)
        response = await relay.open(UpstreamRequest(b"POST", b"/api/blobs/x", (), endless()))
        assert (response.status, await read_all(response)) == (200, b"")
        await asyncio.sleep(0.02)
        assert relay.open_connections == 0


async def test_a_body_that_fails_ends_the_request_with_its_own_error() -> None:
    """The caller gets the exception of the body's source, and the upstream's connection is closed."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise Busy

    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url)
        with pytest.raises(Busy):
            await relay.open(UpstreamRequest(b"POST", b"/api/blobs/x", (), broken()))
        await asyncio.sleep(0.01)
        assert relay.open_connections == 0


async def test_a_slow_reader_pauses_the_upstream_a14() -> None:
    """Until the caller reads, the relay buffers little and the upstream's writes stall; then every byte arrives."""
    size = 20 << 20
    progress = 0

    async def script(visit: Visit) -> None:
        nonlocal progress
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await visit.say(b"y" * 65536)
            progress += 65536

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url)
        response = await relay.open(GET)
        await asyncio.sleep(0.2)
        assert progress < size // 2
        first = await response.read()
        assert len(first) < 1 << 20
        assert len(first) + len(await read_all(response)) == size
        await relay.aclose()


@needs_pauses
async def test_a_slow_upstream_pauses_an_upload_a14() -> None:
    """If the upstream does not read, only as much of the body is requested from its source as the sockets buffer."""
    produced = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(320):
            produced += 65536
            yield b"z" * 65536

    async def script(visit: Visit) -> None:
        await asyncio.sleep(0.15)
        visit.upstream.gone_at.append(produced)
        total = 0
        while total < 320 * 65536:
            total += len(await visit.reader.read(65536))
        await answer(b"x")(visit)

    async with raw_upstream(script, reads_bodies=False) as upstream:
        relay = HttpRelay(upstream.url)
        request = UpstreamRequest(b"POST", b"/api/blobs/x", (), source(), 320 * 65536)
        assert await read_all(await relay.open(request)) == b"x"
        assert upstream.gone_at[0] < 12 << 20
        await relay.aclose()


@pytest.mark.slow
@pytest.mark.real_time
async def test_an_upload_may_pause_for_longer_than_a_machine_may_be_silent() -> None:
    """One that does not read is there all the same: its disk may be slow."""

    async def script(visit: Visit) -> None:
        await asyncio.sleep(2.5)
        total = 0
        while total < 320 * 65536:
            total += len(await visit.reader.read(65536))
        await answer(b"x")(visit)

    async with raw_upstream(script, reads_bodies=False) as upstream:
        relay = HttpRelay(upstream.url, silent_s=0.5)
        request = UpstreamRequest(b"POST", b"/api/blobs/x", (), numbers(320, 65536), 320 * 65536)
        assert await read_all(await relay.open(request)) == b"x"
        await relay.aclose()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
async def test_an_https_upstream_is_used_over_tls(tmp_path: Path) -> None:
    """The certificate is verified: an unknown issuer is an UpstreamError, a trusted one works."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(  # noqa: ASYNC221
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 2 -subj /CN=127.0.0.1"
        " -addext subjectAltName=IP:127.0.0.1",
        shell=True,
        check=True,
        capture_output=True,
    )
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(cert, key)
    async with raw_upstream(answer(b"secret"), tls=server_side) as upstream:
        trusting = HttpRelay(upstream.url, tls=ssl.create_default_context(cafile=str(cert)))
        assert await read_all(await trusting.open(GET)) == b"secret"
        assert await read_all(await trusting.open(GET)) == b"secret"
        await trusting.aclose()
        with pytest.raises(UpstreamError):
            await HttpRelay(upstream.url).open(GET)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://u:p@h", "http://h?x=1", "127.0.0.1:11434"])
def test_an_invalid_base_url_is_refused(url: str) -> None:
    """Userinfo, queries and other schemes are errors at construction, not at the first request."""
    with pytest.raises(ValueError, match="not a base URL"):
        HttpRelay(url)


lines = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(parts=lines, cut=st.floats(0, 1), chunked=st.booleans())
def test_an_answer_is_read_alike_in_any_pieces(parts: list[bytes], cut: float, chunked: bool) -> None:
    """Whole and byte by byte it has the same bytes; cut off, it is always an error, never a short clean end."""
    body = b"".join(parts)
    framed = b"".join(map(chunk, parts)) + b"0\r\n\r\n" if chunked else body
    head = STREAM_HEAD if chunked else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    raw = head + framed
    feeds = {b"/whole": [raw], b"/bytes": [raw[i : i + 1] for i in range(len(raw))]}
    feeds[b"/cut"] = [raw[: int(len(raw) * cut * 0.999)]]

    async def script(visit: Visit) -> None:
        for piece in feeds[visit.target]:
            visit.writer.write(piece)
        if visit.target == b"/cut":
            visit.writer.close()

    async def run() -> None:
        async with raw_upstream(script) as upstream:
            relay = HttpRelay(upstream.url)
            assert await read_all(await relay.open(UpstreamRequest(b"GET", b"/whole"))) == body
            assert await read_all(await relay.open(UpstreamRequest(b"GET", b"/bytes"))) == body
            with pytest.raises(UpstreamError):
                await read_all(await relay.open(UpstreamRequest(b"GET", b"/cut")))
            await relay.aclose()

    asyncio.run(run())


async def test_five_thousand_cancellations_leave_no_state_a5() -> None:
    """Callers are cancelled at random moments; then every request succeeds, and no connection or task is left."""
    rng = random.Random(7)

    async def script(visit: Visit) -> None:
        if visit.target == b"/probe":
            await answer(b"ok")(visit)
            return
        await asyncio.sleep(rng.random() * 0.01)
        visit.writer.write(STREAM_HEAD)
        for _ in range(5):
            await visit.say(chunk(b'{"done":false}\n'))
            await asyncio.sleep(rng.random() * 0.005)
        await visit.say(chunk(b'{"done":true}\n') + b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, pool_size=30)
        base = len(asyncio.all_tasks())

        async def once() -> None:
            response = await relay.open(POST)
            try:
                await read_all(response)
            finally:
                response.close()

        async def worker() -> None:
            for _ in range(100):
                task = asyncio.create_task(once())
                await asyncio.sleep(rng.random() * 0.012)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(worker() for _ in range(50)))
        for _ in range(20):
            async with asyncio.timeout(1):
                assert await read_all(await relay.open(UpstreamRequest(b"GET", b"/probe"))) == b"ok"
        assert relay.open_connections <= 30
        await relay.aclose()
        await asyncio.sleep(0.05)
        assert relay.open_connections == 0
        assert len(asyncio.all_tasks()) <= base + 2 + upstream.open_connections


async def test_a_wire_returned_early_serves_the_next_request_correctly() -> None:
    """An answer in one piece returns its wire before its caller wakes, and the next request may take it."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url)

        async def ask() -> None:
            for _ in range(50):
                assert await read_all(await relay.open(GET)) == b"x"

        async def leave() -> None:
            for _ in range(50):
                task = asyncio.create_task(relay.open(GET))
                for _ in range(6):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        async with asyncio.timeout(5):
            await asyncio.gather(*(ask() for _ in range(20)), *(leave() for _ in range(5)))
        await relay.aclose()


async def test_with_suppress_cancel_an_abandoned_answer_is_drained_a6() -> None:
    """The upstream is not cut off, before the head or after it, and the connection is reused."""

    async def script(visit: Visit) -> None:
        await asyncio.sleep(0.02)
        await visit.say(STREAM_HEAD)
        for _ in range(5):
            await visit.say(chunk(b"x" * 1000))
            await asyncio.sleep(0.01)
        await visit.say(b"0\r\n\r\n")

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, suppress_cancel=True)
        early = asyncio.create_task(relay.open(POST))
        await asyncio.sleep(0.01)
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        (await relay.open(POST)).close()
        assert relay.idle_connections == 0
        async with asyncio.timeout(2):
            while relay.idle_connections < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert len(await read_all(await relay.open(POST))) == 5000
        assert (upstream.connections, upstream.open_connections) == (2, 2)
        await relay.aclose()


@pytest.mark.parametrize("bound", [{"unwanted_bytes": 3000}, {"unwanted_s": 0.05}])
async def test_draining_is_bounded_a6(bound: dict[str, float]) -> None:
    """Beyond the bytes or the time allowed the connection is closed."""

    async def script(visit: Visit) -> None:
        await visit.say(STREAM_HEAD)
        for _ in range(200):
            await visit.say(chunk(b"x" * 1000))
            await asyncio.sleep(0.01)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, suppress_cancel=True, idle_timeout_s=1.0, **bound)  # type: ignore[arg-type]
        (await relay.open(POST)).close()
        async with asyncio.timeout(1.5):
            while relay.open_connections:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await relay.aclose()


async def test_connecting_to_an_unresponsive_address_times_out_b3() -> None:
    """A listener whose backlog is full does not answer: the connect timeout applies, and nothing is left open."""
    hole = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(hole.getsockname())
        filling.append(sock)
    relay = HttpRelay(f"http://127.0.0.1:{hole.getsockname()[1]}", connect_timeout_s=0.2)
    started_s = asyncio.get_running_loop().time()
    with uncollected():
        (error,) = await asyncio.gather(relay.open(POST), return_exceptions=True)
        assert isinstance(error, UpstreamUnreached)
        del error
        await asyncio.sleep(0)  # the loop still holds what it has just called
        assert errors_left() == []
    assert asyncio.get_running_loop().time() - started_s < 0.4
    assert relay.open_connections == 0
    for sock in (*filling, hole):
        sock.close()


async def test_a_connection_whose_buffer_was_full_at_the_answers_end_can_be_read_again() -> None:
    """If one read brings more than the buffer and the end, the next request on the connection gets its answer."""

    async def script(visit: Visit) -> None:
        await answer(b"x" * 400_000)(visit)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, first_byte_timeout_s=2.0)
        for _ in range(5):
            response = await relay.open(POST)
            await asyncio.sleep(0.03)  # the caller reads late
            assert len(await read_all(response)) == 400_000
        await relay.aclose()


async def test_a_provisional_answer_to_an_abandoned_request_ends_nothing_a6() -> None:
    """`suppress_cancel`: a 103, then the final answer; it is not taken for that to the next request."""

    async def script(visit: Visit) -> None:
        if b"slow" in visit.head:
            await visit.say(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
            await asyncio.sleep(0.05)
        await answer(visit.target)(visit)

    async with raw_upstream(script) as upstream:
        relay = HttpRelay(upstream.url, suppress_cancel=True)
        assert await read_all(await relay.open(GET)) == b"/api/tags"
        slow = asyncio.create_task(relay.open(UpstreamRequest(b"GET", b"/slow")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        await asyncio.sleep(0.02)
        for _ in range(3):
            assert await read_all(await relay.open(GET)) == b"/api/tags"
        await relay.aclose()


async def test_a_connection_that_is_closing_is_skipped() -> None:
    """One of two unused connections was closed by the upstream: the other one is used."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url)
        both = await asyncio.gather(relay.open(GET), relay.open(GET))
        for response in both:
            await read_all(response)
        assert relay.idle_connections == 2
        relay._connections._idle[-1].transport.close()
        assert await read_all(await relay.open(POST)) == b"x"
        relay._connections._idle[-1].transport.close()
        assert relay.open_now(POST, lambda: None) is None
        await relay.aclose()


async def test_a_request_takes_the_first_connection_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is being opened slowly, another request returns its own."""
    go, loop = asyncio.Event(), asyncio.get_running_loop()
    connect = loop.create_connection

    async def slowly(*arguments: Any, **details: Any) -> Any:
        await go.wait()
        return await connect(*arguments, **details)

    async with raw_upstream(answer(b"{}")) as upstream:
        relay = HttpRelay(upstream.url)
        first = await relay.connect()
        monkeypatch.setattr(loop, "create_connection", slowly)
        second = asyncio.create_task(relay.open(GET))
        await asyncio.sleep(0)
        assert relay.open_connections == 2
        relay.give_back(first)
        async with asyncio.timeout(5):
            assert await (await second).read() == b"{}"
            assert upstream.connections == 1
            go.set()
            while relay.idle_connections < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await relay.aclose()


async def test_every_request_that_waits_for_a_connection_gets_the_error_of_opening_it() -> None:
    """Three concurrent requests to a closed port: three errors, and nothing is left open."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    relay = HttpRelay(f"http://127.0.0.1:{port}", pool_wait_s=30)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*(relay.open(GET) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [UpstreamError] * 3
    assert relay.open_connections == 0
    await relay.aclose()


@pytest.mark.parametrize("body", [None, b"{}"])
async def test_headers_of_one_request_alone_are_sent_and_not_kept(body) -> None:
    """What others share is rendered once all the same."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url)
        for number in range(3):
            own = b"traceparent: %d\r\n" % number
            request = UpstreamRequest(b"POST", b"/", (), body, lines=b"x: 1\r\n", own_lines=own)
            assert await read_all(await relay.open(request)) == b"x"
        assert [b"x: 1\r\ntraceparent: %d\r\n" % number in head for number, (head, _) in enumerate(upstream.requests)]
        assert list(relay._fronts) == [(b"POST", b"/", b"x: 1\r\n")]
        await relay.aclose()


async def test_how_heads_begin_is_kept_for_so_many_requests_and_for_no_huge_one() -> None:
    """Targets come from clients: any number of them, as long as they like, take bounded memory."""
    async with raw_upstream(answer(b"x")) as upstream:
        relay = HttpRelay(upstream.url)
        targets = [b"/%d" % number for number in range(MOST_FRONTS + 1)]
        targets.append(b"/" + b"a" * MAX_HEAD_BYTES)
        for target in targets:
            assert await read_all(await relay.open(UpstreamRequest(b"GET", target))) == b"x"
        assert [head.split()[1] for head, _ in upstream.requests] == targets
        assert list(relay._fronts) == [(b"GET", b"/%d" % MOST_FRONTS, b"")]
        await relay.aclose()
