"""A request leaves no reference cycles: the garbage collector runs rarely, so that they would pile up."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from router.http.client.pool import HttpRelay
from tests.fakes import FakeDispatcher, RawClient, request_bytes, running_edge, warm
from tests.http.raw_upstream import STREAM_HEAD, Script, Visit, answer, chunk, raw_upstream

CHAT = '{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'


async def stream(visit: Visit) -> None:
    await visit.say(STREAM_HEAD + chunk(b'{"done":false}\n'))
    await asyncio.sleep(0.002)
    await visit.say(chunk(b'{"done":true}\n') + b"0\r\n\r\n")


async def silence(visit: Visit) -> None:
    await visit.gone()


async def endless(visit: Visit) -> None:
    await visit.say(STREAM_HEAD + chunk(b'{"done":false}\n'))
    await visit.gone()


async def cut(visit: Visit) -> None:
    visit.writer.close()


async def cut_in_mid_stream(visit: Visit) -> None:
    await visit.say(STREAM_HEAD + chunk(b'{"done":false}\n'))
    visit.writer.close()


def is_of_a_request(found: object) -> bool:
    """Whether it is the router's own, or one of the tasks and errors that a request makes."""
    kind = type(found)
    return kind.__module__.startswith("router.") or issubclass(kind, (asyncio.Task, BaseException))


@contextmanager
def collector_off() -> Iterator[Callable[[], Counter[str]]]:
    """Yield what counts the objects of requests that were made since, by kind; what other tests left is set aside."""
    gc.disable()
    gc.freeze()
    try:
        yield lambda: Counter(type(found).__name__ for found in gc.get_objects() if is_of_a_request(found))
    finally:
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize(
    ("script", "leaves"),
    [
        (answer(b'{"done":true}'), False),
        (stream, False),
        (silence, True),
        (endless, True),
        (cut, False),
        (cut_in_mid_stream, False),
    ],
    ids=["whole", "stream", "left-before", "left-in-mid-stream", "cut", "cut-in-mid-stream"],
)
async def test_a_request_and_its_connection_leave_no_reference_cycle(script: Script, leaves: bool) -> None:
    """After ten requests on connections of their own, with the collector off, none of their objects is left."""
    async with raw_upstream(script) as upstream, running_edge(FakeDispatcher(HttpRelay(upstream.url))) as running:
        relay = running.dispatcher.relay
        assert isinstance(relay, HttpRelay)

        async def one() -> None:
            if FakeDispatcher.takes_at_once and not relay.idle_connections:
                await warm(relay, 1)
            raw = await RawClient.to(running.port)
            await raw.send(request_bytes("POST", "/api/chat", CHAT))
            if not leaves:
                await raw.reply()
            elif script is endless:
                await raw.head()
            else:
                await asyncio.sleep(0.01)
            raw.close()

        def forget() -> None:
            for kept in (running.dispatcher.calls, running.dispatcher.released, upstream.requests):
                kept.clear()

        await one()
        await asyncio.sleep(0.05)
        forget()
        with collector_off() as count:
            for _ in range(10):
                await one()
            await asyncio.sleep(0.1)
            forget()
            assert {kind: number for kind, number in count().items() if number >= 5} == {}
