"""Large bodies are read in a thread, one after the other, and delay nobody."""

from __future__ import annotations

import asyncio
import threading

import pytest
import zstandard

from router.api.beside import beside, is_large
from router.api.settings import EdgeSettings
from router.http.client.pool import HttpRelay
from tests.fakes import FakeDispatcher, RawClient, request_bytes, running_edge
from tests.http.raw_upstream import answer, raw_upstream

HELLO = '"model":"llama3:8b","messages":[{"role":"user","content":"hi"}]'
SMALL = f"{{{HELLO}}}"
LONG = f'{{{HELLO},"x":"{"a" * 3000}"}}'
MANY = f'{{{HELLO},"x":[{"1," * 400}1]}}'
LARGE = [LONG, MANY]
SETTINGS = EdgeSettings(inline_bytes=2048, body_values=5000)


@pytest.mark.parametrize("large", LARGE, ids=["bytes", "values"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/delete", "/api/show"])
async def test_others_are_served_while_a_large_body_is_read_f8(large: str, path: str) -> None:
    """The thread is kept busy until a later, small request has its answer."""
    is_released = threading.Event()
    method = "DELETE" if path == "/api/delete" else "POST"
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), SETTINGS) as running:
            busy = asyncio.ensure_future(beside(is_released.wait))
            slow, quick = await RawClient.to(running.port), await RawClient.to(running.port)
            await slow.send(request_bytes(method, path, large))
            answered = asyncio.ensure_future(slow.reply())
            assert (await quick.ask("POST", "/api/chat", SMALL)).status == 200
            assert not answered.done()
            is_released.set()
            assert (await answered).status == 200
            await busy
            slow.close()
            quick.close()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/api/pull", "/api/show"])
async def test_more_values_than_body_values_are_refused(path: str) -> None:
    """Before anything is read from them, on every route."""
    body = f'{{{HELLO},"x":[{"1," * 5000}1]}}'
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), SETTINGS) as running:
            raw = await RawClient.to(running.port)
            reply = await raw.ask("POST", path, body)
            assert (reply.status, b"more than 5000 values" in reply.body) == (400, True)
            assert not upstream.requests
            raw.close()


async def test_a_client_that_leaves_takes_its_large_body_along() -> None:
    """A body that waits for the thread is not read any more, and nothing is left."""
    is_released = threading.Event()
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), SETTINGS) as running:
            busy = asyncio.ensure_future(beside(is_released.wait))
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", "/api/chat", LONG))
            while not running.listener.tasks():  # noqa: ASYNC110
                await asyncio.sleep(0)
            raw.close()
            while running.listener.tasks():  # noqa: ASYNC110
                await asyncio.sleep(0)
            is_released.set()
            await busy
            await beside(int)
            assert not upstream.requests


@pytest.mark.parametrize("frame", [zstandard.compress(b""), b"\x50\x2a\x4d\x18\0\0\0\0"], ids=["empty", "skippable"])
async def test_a_body_of_countless_frames_is_refused(frame: bytes) -> None:
    """Each costs a little, and holds nothing."""
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            packed = frame * 1025 + zstandard.compress(SMALL.encode())
            reply = await raw.ask("POST", "/v1/chat/completions", packed, [("Content-Encoding", "zstd")])
            assert (reply.status, b"frames" in reply.body) == (400, True)
            raw.close()


async def test_a_zstd_body_beyond_zstd_bytes_is_not_unpacked() -> None:
    """What is sent is bounded like what it unpacks to."""
    settings = EdgeSettings(zstd_bytes=1000)
    async with raw_upstream(answer(b'{"done":true}')) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), settings) as running:
            raw = await RawClient.to(running.port)
            packed = b"\x50\x2a\x4d\x18\xe8\x03\0\0" + bytes(1000) + zstandard.compress(SMALL.encode())
            reply = await raw.ask("POST", "/v1/chat/completions", packed, [("Content-Encoding", "zstd")])
            assert reply.status == 413
            raw.close()


def test_a_body_is_large_by_its_bytes_or_its_values() -> None:
    """Bytes of one long text are cheap, and small values are not."""
    assert not is_large(b"x" * 2048, 2048)
    assert is_large(b"x" * 2049, 2048)
    assert is_large(b"1," * 33, 2048)
    assert not is_large(b"1," * 32, 2048)
    assert is_large(b"[[" * 33, 2048)
    assert is_large(b'[{"a":' * 20, 2048)
    assert not is_large(b"[]" * 32, 2048)
