"""The fast path: which requests take it, and that no state is left on any exit path."""

from __future__ import annotations

import asyncio

import pytest

from router.api import at_once
from router.api.reports import Reports
from router.api.settings import EdgeSettings
from router.http.client.pool import HttpRelay
from router.http.server.proxies import Proxies
from router.telemetry import Answered
from tests.fakes import FakeDispatcher, RawClient, RunningEdge, client, request_bytes, running_edge, warm
from tests.http.raw_upstream import Visit, answer, raw_upstream

CHAT = '{"model":"llama3:8b","messages":[{"role":"user","content":"hi"}],"stream":false}'
DONE = b'{"model":"llama3:8b","done":true,"prompt_eval_count":3,"eval_count":2}'


@pytest.fixture(autouse=True)
def _at_once(_way: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDispatcher, "takes_at_once", True)


def tasks_of(running: RunningEdge) -> int:
    return len(running.listener.tasks())


async def test_a_common_request_is_answered_without_a_task() -> None:
    """While the upstream withholds its answer the request has no task; after the answer it is released."""
    go = asyncio.Event()

    async def script(visit: Visit) -> None:
        await go.wait()
        await answer(DONE)(visit)

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            while not upstream.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert tasks_of(running) == 0
            go.set()
            reply = await raw.reply()
            assert (reply.status, reply.body) == (200, DONE)
            assert "x-request-id" in reply.headers
            (released,) = running.dispatcher.released
            assert (released.outcome, released.tokens_in, released.tokens_out) == ("completed", 3, 2)
            raw.close()


async def test_uncommon_requests_get_a_task() -> None:
    """Those of browsers, with a request id, with a header of the router, with a large body."""
    large = CHAT.replace('"hi"', '"' + "x" * (80 << 10) + '"')
    cases: list[tuple[str, list[tuple[str, str]]]] = [
        (CHAT, [("Origin", "http://localhost")]),
        (CHAT, [("X-Request-Id", "mine")]),
        (CHAT, [("X-Router-Strict", "true")]),
        (large, []),
    ]
    seen: list[int] = []

    async def script(visit: Visit) -> None:
        seen.append(tasks_of(running))
        await answer(DONE)(visit)

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            for body, headers in cases:
                assert (await raw.ask("POST", "/api/chat", body, headers)).status == 200
            raw.close()
    assert seen == [1] * len(cases)


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Three requests in one write get three answers in their order."""

    async def script(visit: Visit) -> None:
        await answer(b'{"done":true,"n":%d}' % len(visit.upstream.requests))(visit)

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", "/api/chat", CHAT) * 3)
            assert [(await raw.reply()).body[-2:] for _ in range(3)] == [b"1}", b"2}", b"3}"]
            raw.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\nx"]
)
async def test_an_upstream_that_breaks_off_causes_one_clean_error(garbage: bytes) -> None:
    """502; no task is left, and the client's connection serves the next request."""
    broken = 1 if garbage else 2  # one whose kept connection ends without a byte is sent once more

    async def script(visit: Visit) -> None:
        if len(visit.upstream.requests) <= broken:
            await visit.say(garbage)
            visit.writer.close()
        else:
            await answer(DONE)(visit)

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            raw = await RawClient.to(running.port)
            assert (await raw.ask("POST", "/api/chat", CHAT)).status == 502
            assert (await raw.ask("POST", "/api/chat", CHAT)).status == 200
            assert tasks_of(running) == 0
            raw.close()


async def test_a_client_that_leaves_as_its_stream_begins_leaves_no_state() -> None:
    """The answer is released even if the task that would send it is cancelled before its first step."""

    async def script(visit: Visit) -> None:
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        visit.upstream.gone_at.append(await visit.gone())

    async with raw_upstream(script) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
            for _ in range(50):
                assert isinstance(running.dispatcher.relay, HttpRelay)
                await warm(running.dispatcher.relay, 1)
                raw = await RawClient.to(running.port)
                await raw.send(request_bytes("POST", "/api/chat", CHAT.replace("false", "true")))
                await asyncio.sleep(0)
                raw.reset()
            async with asyncio.timeout(3):
                while len(running.dispatcher.released) < len(running.dispatcher.calls):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                while running.listener.open_connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert tasks_of(running) == 0


async def test_a_small_body_limit_applies_on_the_fast_path_too() -> None:
    """413 for a body that is small enough for the fast path."""
    async with raw_upstream(answer(DONE)) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url)), EdgeSettings(body_bytes=50)) as running:
            raw = await RawClient.to(running.port)
            assert (await raw.ask("POST", "/api/chat", CHAT)).status == 413
            assert upstream.requests == []
            raw.close()


async def test_a_fault_of_ours_on_the_fast_path_is_a_500_in_ollamas_form(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and reported, and the connection serves on."""
    reported: list[Answered] = []

    def fails(*_args: object, **_more: object) -> None:
        raise KeyError("a fault")

    async with raw_upstream(answer(DONE)) as upstream:
        async with running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running, client(running.port) as raw:
            running.edge.reports = Reports(reported.append, Proxies(()))
            with monkeypatch.context() as patch:
                patch.setattr(at_once, "read_call", fails)
                reply = await raw.ask("POST", "/api/chat", CHAT)
            assert (reply.status, reply.json()) == (500, {"error": "internal error"})
            assert [(one.status, one.outcome) for one in reported] == [(500, "refused")]
            assert (await raw.ask("POST", "/api/chat", CHAT)).status == 200
    assert "a fault" in caplog.text
